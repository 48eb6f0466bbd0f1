#!/usr/bin/env bash
# Run `snakemake --profile slurm`, kill a training once it has saved its state, let it go on, and keep what shows this.
#   tests/cluster/evidence.sh EVIDENCE_FOLDER [options of snakemake]
# On one machine with H100s, without conda, as root and in a clone of the workflow after `make setup`:
#   . .venv/bin/activate; export CONDA_SHIM_ENVIRONMENT=$PWD/.venv PATH=$PWD/tests/shims/conda-shim/bin:$PATH
#   tests/cluster/slurm/up.sh /tmp/slurm 2
#   tests/cluster/evidence.sh evidence --configfile examples/gemma-3-270m.yaml local.yaml
set -euo pipefail
evidence=${1:?usage: evidence.sh EVIDENCE_FOLDER [options of snakemake]}
shift
saved=results/*/*/checkpoints/checkpoint-*/whole
if compgen -G "$saved" >/dev/null; then
    echo "evidence.sh: expected a folder without a training under way, found $(compgen -G "$saved" | head -n 1)" >&2
    exit 1
fi
mkdir -p "$evidence"
started=$(date +%FT%T)
sinfo --Node --long > "$evidence/sinfo.txt"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv > "$evidence/gpus.csv" 2>&1 || true
python -m snakemake --profile slurm "$@" > "$evidence/snakemake.log" 2>&1 &
run=$!
trap 'kill "$run" 2>/dev/null || true' EXIT

state=
until [ -n "$state" ]; do
    if ! kill -0 "$run" 2>/dev/null; then
        tail -n 5 "$evidence/snakemake.log" >&2
        echo "evidence.sh: expected a training that saves its state, found a run that ended" >&2
        exit 1
    fi
    sleep 0.2
    state=$(compgen -G "$saved" | head -n 1 || true)
done
IFS=/ read -r _ model arm _ <<< "$state"
job=$(squeue --noheader --states=RUNNING --format='%A %k' \
    | awk -v "wanted=rule_finetune_wildcards_${model}_$arm" '$2 == wanted {print $1}')
scancel --signal=KILL "${job:?no running training of $arm}.0"  # the step alone: otherwise Slurm sends SIGTERM first
echo "killed job $job, the training $arm of $model, after $state" | tee "$evidence/killed.txt"

code=0
wait "$run" || code=$?
sacct --starttime="$started" --parsable2 --format=JobID,JobName,Comment,State,ExitCode,Elapsed,MaxRSS,ReqTRES \
    > "$evidence/sacct.txt"
[ "$code" = 0 ] || { tail -n 5 "$evidence/snakemake.log" >&2; exit "$code"; }
grep "resuming from" "logs/$model/finetune_$arm.log" | tee -a "$evidence/killed.txt"
python -m snakemake --profile slurm "$@" --report "$evidence/report.html" > "$evidence/report.log" 2>&1
for results in results/*/summary.json; do
    folder=$(dirname "$results")
    mkdir -p "$evidence/$(basename "$folder")"
    cp -r "$folder"/{summary.json,summary.csv,model_card.md,costs.csv,costs.json,plots} "$evidence/$(basename "$folder")"
done
cp -r logs "$evidence"
