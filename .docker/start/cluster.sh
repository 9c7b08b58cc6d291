#!/usr/bin/env bash
# A login node for the real FirecREST: Slurm, and sshd that knows FirecREST's key for the user "hpc".
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
keys=${FIRECREST_KEYS:-/firecrest-keys}
# The user that FirecREST's image runs as: it has to read the private key.
firecrest_uid=5678

bash "$here/slurm.sh"

if [[ ! -s $keys/hpc ]]; then
  ssh-keygen -q -t ed25519 -N "" -C firecrest -f "$keys/hpc"
fi
chown "$firecrest_uid" "$keys/hpc"
install -d -o hpc -g hpc -m 700 /home/hpc/.ssh
install -o hpc -g hpc -m 600 "$keys/hpc.pub" /home/hpc/.ssh/authorized_keys

ssh-keygen -A
mkdir -p /run/sshd
# FirecREST opens up to two sessions for each request of a user, all over one connection.
exec /usr/sbin/sshd -D -e -o PasswordAuthentication=no -o PermitRootLogin=no -o MaxSessions=255
