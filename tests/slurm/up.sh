#!/usr/bin/env bash
# Start munged, slurmctld and slurmd on loopback, without systemd. Needs root and `apt-get install slurm-wlm munge`.
#   up.sh STATE_FOLDER
# The config is linked to /etc/slurm, since the Slurm plugin drops SLURM_CONF from the environment of a job's step.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "$0")" && pwd)
state=${1:?usage: up.sh STATE_FOLDER}
mkdir -p "$state"/{state,spool,log,run,dev} /etc/slurm
for name in slurm gres; do
    target=/etc/slurm/$name.conf
    if [ -e "$target" ] && [ ! -L "$target" ]; then
        echo "$target belongs to a Slurm of this machine: left alone" >&2
        exit 1
    fi
    sed "s#@STATE@#$state#g" "$here/$name.conf.in" > "$state/$name.conf"
    ln -sfn "$state/$name.conf" "$target"
done
for number in {0..7}; do ln -sfn /dev/null "$state/dev/nvidia$number"; done
if ! munge -n 2>/dev/null | unmunge >/dev/null 2>&1; then
    mkdir -p /run/munge
    chown munge:munge /run/munge
    runuser -u munge -- /usr/sbin/munged --pid-file="/run/munge/munged.pid"
    cp /run/munge/munged.pid "$state/run/munged.pid"
fi
slurmctld -c
slurmd -N h100-01
for _ in {1..100}; do
    if timeout 2 sinfo --noheader --format=%T 2>/dev/null | grep -q idle; then exit 0; fi
    sleep 0.2
done
echo "Slurm did not come up:" >&2
tail -n 5 "$state/log/slurmctld.log" >&2
exit 1
