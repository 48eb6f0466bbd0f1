#!/usr/bin/env bash
# Stop the daemons that up.sh started, by their process ids, and remove its links from /etc/slurm.
#   down.sh STATE_FOLDER
set -euo pipefail
state=${1:?usage: down.sh STATE_FOLDER}
for daemon in slurmd slurmctld slurmdbd mariadbd munged; do
    file=$state/run/$daemon.pid
    if [ -f "$file" ]; then
        pid=$(cat "$file")
        kill "$pid" 2>/dev/null || true
        for _ in {1..50}; do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        rm -f "$file"
    fi
done
for name in slurm slurmdbd gres cgroup; do
    target=/etc/slurm/$name.conf
    if [ "$(readlink "$target" || true)" = "$state/$name.conf" ]; then rm "$target"; fi
done
