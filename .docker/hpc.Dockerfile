# Debian's Slurm on one machine, for three services: the embedded gateway, the cluster behind the real
# FirecREST, and the TLS front of both. Each has its start-up file in start/.
FROM debian:12.12-slim

RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      ca-certificates curl mariadb-server munge openssh-server python3 python3-venv stunnel4 \
      quantum-espresso quantum-espresso-data slurm-client slurmctld slurmd slurmdbd \
 && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_* /etc/munge/munge.key \
 && useradd --create-home --shell /bin/bash hpc

WORKDIR /opt/provider
COPY pyproject.toml README.md LICENSE ./
COPY airflow_hpc_provider airflow_hpc_provider
# The gateway imports nothing of Airflow, so the package goes in without its dependencies.
RUN python3 -m venv /opt/venv \
 && python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["devgateway"], sep="\n")' > /tmp/requirements.txt \
 && /opt/venv/bin/pip install --no-cache-dir --requirement /tmp/requirements.txt \
 && /opt/venv/bin/pip install --no-cache-dir --no-deps .

COPY .docker/start /opt/start
WORKDIR /
