#!/usr/bin/env bash
# Start MariaDB, munged, slurmdbd, slurmctld and slurmd on loopback, without systemd. Needs root and
# `apt-get install slurm-wlm slurmdbd munge mariadb-server`.
#   up.sh STATE_FOLDER          # a node like a cluster's, with eight H100s that are links to /dev/null
#   up.sh STATE_FOLDER 2        # this machine's own cores, memory and two H100s
#   up.sh STATE_FOLDER 1 4      # a node like a cluster's, whose four H100s are this machine's one, shared by four jobs
# The config is linked to /etc/slurm, since the Slurm plugin drops SLURM_CONF from the environment of a job's step.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "$0")" && pwd)
state=${1:?usage: up.sh STATE_FOLDER [GPUS [JOBS_ON_ONE_GPU]]}
gpus=${3:-${2:-8}} devices=$state/dev cpus=64 memory=1000000 device=/dev/null
if [ $# -gt 2 ]; then
    [ "$2" = 1 ] || { echo "GPUS: expected 1 where jobs share a GPU, found $2" >&2; exit 1; }
    device=/dev/nvidia0
elif [ $# -gt 1 ]; then
    devices=/dev cpus=$(nproc) memory=$(free --mega | awk '/^Mem:/ {print int($2 * 0.9)}')
fi
mkdir -p "$state"/{state,spool,log,run,dev} /etc/slurm
until_it_answers() {  # arguments: the name of the daemon's log, then the command to try
    for _ in {1..100}; do
        if timeout 2 "${@:2}" >/dev/null 2>&1; then return; fi
        sleep 0.2
    done
    echo "$1 did not come up:" >&2
    tail -n 5 "$state/log/$1.log" >&2
    exit 1
}
for name in slurm slurmdbd gres cgroup; do
    target=/etc/slurm/$name.conf
    if [ -e "$target" ] && [ ! -L "$target" ]; then
        echo "$target belongs to a Slurm of this machine: left alone" >&2
        exit 1
    fi
    sed -e "s#@STATE@#$state#g" -e "s#@DEVICES@#$devices#" -e "s#@GPUS@#$gpus#" -e "s#@LAST@#$((gpus - 1))#" \
        -e "s#@CPUS@#$cpus#" -e "s#@MEMORY@#$memory#" "$here/$name.conf.in" > "$state/$name.conf"
    chmod 600 "$state/$name.conf"
    ln -sfn "$state/$name.conf" "$target"
done
for ((number = 0; number < gpus; number++)); do ln -sfn "$device" "$state/dev/nvidia$number"; done
# Slurm numbers the GPUs of a job by the files of gres.conf, CUDA by the devices, of which there is one.
printf '%s\n' '#!/bin/sh' > "$state/task_prolog.sh"
if [ $# -gt 2 ]; then
    echo '[ -z "$CUDA_VISIBLE_DEVICES" ] || echo export CUDA_VISIBLE_DEVICES=0' >> "$state/task_prolog.sh"
fi
chmod +x "$state/task_prolog.sh"
if ! munge -n 2>/dev/null | unmunge >/dev/null 2>&1; then
    mkdir -p /run/munge
    chown munge:munge /run/munge
    runuser -u munge -- /usr/sbin/munged --pid-file="/run/munge/munged.pid"
    cp /run/munge/munged.pid "$state/run/munged.pid"
fi
socket=$state/run/mariadb.sock
mariadb-install-db --no-defaults --user=root --datadir="$state/mariadb" >"$state/log/mariadb.log" 2>&1
mariadbd --no-defaults --user=root --datadir="$state/mariadb" --bind-address=127.0.0.1 --port=16820 \
    --socket="$socket" --pid-file="$state/run/mariadbd.pid" >>"$state/log/mariadb.log" 2>&1 &
until_it_answers mariadb mariadb-admin --no-defaults --socket="$socket" ping
mariadb --no-defaults --socket="$socket" \
    --execute="CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm'; GRANT ALL ON slurm.* TO slurm@'127.0.0.1'"
slurmdbd
until_it_answers slurmdbd sacctmgr --noheader list cluster
sacctmgr --immediate add cluster onebox >/dev/null
sacctmgr --immediate add account default >/dev/null
sacctmgr --immediate add user root account=default >/dev/null
slurmctld -c
slurmd -N h100-01
until_it_answers slurmctld bash -c 'sinfo --noheader --format=%T | grep -qx idle'
