#!/usr/bin/env bash
# The embedded gateway in front of Slurm. Jobs and files are those of the user "hpc".
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")

bash "$here/slurm.sh"
install -d -o hpc -g hpc /srv/hpc
export HOME=/home/hpc USER=hpc
# --allow-remote: the front, which adds TLS, is another container; no port of this one is published. What goes to the
# storage directly are presigned URLs, no secrets.
exec setpriv --reuid=hpc --regid=hpc --init-groups \
  /opt/venv/bin/python -m airflow_hpc_provider.devgateway --scheduler slurm --root /srv/hpc \
  --allow-remote --host 0.0.0.0 --public-host gateway --port 8000 --storage-port 8001
