#!/usr/bin/env bash
# Start Slurm with accounting on this machine, as root, and return when it takes jobs of the user "hpc".
set -Eeuo pipefail

node=$(hostname -s)
mkdir -p /run/munge /run/mysqld /run/slurm /var/spool/slurmctld /var/spool/slurmd
chown munge: /run/munge
chown mysql: /run/mysqld
chown slurm: /run/slurm /var/spool/slurmctld

# No cgroups: a container would need privileges for them. The older plugin is the one that then asks for none.
echo "CgroupPlugin=cgroup/v1" > /etc/slurm/cgroup.conf
cat > /etc/slurm/slurm.conf <<CONF
ClusterName=demo
SlurmctldHost=$node
SlurmUser=slurm
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
JobAcctGatherType=jobacct_gather/linux
NodeName=$node CPUs=$(nproc) State=UNKNOWN
PartitionName=normal Nodes=ALL Default=YES MaxTime=1-00:00:00 OverSubscribe=NO State=UP
CONF

# The socket proves who asks, so that the database needs no password.
cat > /etc/slurm/slurmdbd.conf <<CONF
AuthType=auth/munge
DbdHost=localhost
SlurmUser=slurm
PidFile=/run/slurm/slurmdbd.pid
LogFile=/var/log/slurm/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StorageLoc=slurm
CONF
chown slurm: /etc/slurm/slurmdbd.conf
chmod 600 /etc/slurm/slurmdbd.conf
install -d -o slurm -g slurm /var/log/slurm

# The daemons write what went wrong to files only.
trap 'tail -n 20 /var/log/slurm/*.log >&2' ERR

wait_for() { # seconds, what, command...
  local left=$1 what=$2
  shift 2
  until "$@" > /dev/null 2>&1; do
    if (( left-- <= 0 )); then
      echo "$what did not start" >&2
      return 1
    fi
    sleep 1
  done
}

if [[ ! -s /etc/munge/munge.key ]]; then
  install -o munge -g munge -m 400 /dev/null /etc/munge/munge.key
  head -c 1024 /dev/urandom > /etc/munge/munge.key
fi
setpriv --reuid=munge --regid=munge --clear-groups munged
wait_for 10 munge munge --no-input

mariadbd-safe --user=mysql --skip-networking > /dev/null 2>&1 &
wait_for 60 MariaDB mariadb -e 'SELECT 1'
mariadb -e "CREATE DATABASE IF NOT EXISTS slurm;
            CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED VIA unix_socket;
            GRANT ALL ON slurm.* TO slurm@localhost;"

setpriv --reuid=slurm --regid=slurm --clear-groups slurmdbd
wait_for 60 slurmdbd sacctmgr --noheader list cluster
# Each answers 1 when what it adds is there already, as after a restart.
for what in "cluster demo" "account staff,users Cluster=demo" "user hpc Account=staff,users DefaultAccount=staff"; do
  # shellcheck disable=SC2086
  sacctmgr --immediate add $what > /dev/null 2>&1 || true
done

setpriv --reuid=slurm --regid=slurm --clear-groups slurmctld
wait_for 30 slurmctld scontrol ping
slurmd
wait_for 60 "the node" setpriv --reuid=hpc --regid=hpc --clear-groups srun --immediate=5 true
echo "Slurm is up: $(sinfo --noheader)"
