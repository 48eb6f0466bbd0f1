#!/usr/bin/env bash
# Run most measurements of docs/gpu.md one after another, on a machine with one or more GPUs; no network is needed.
# OUT gets a log of each, with its exit code, and the JSON files. A measurement that fails does not stop the others.
#   tests/bench/on_gpus.sh FOLDER OUT MODEL MMLU
#   FOLDER: for random weights in the shapes of Gemma 3 12B and what is made of them; about 150 GB, best in memory
#   MODEL:  a folder of Gemma 3 270M, for its tokenizer and its real weights; MMLU: a folder written by download_mmlu
set -euo pipefail
[ $# = 4 ] || { sed -n 2,6p "$0" >&2; exit 2; }
folder=$(realpath -m "$1") out=$(realpath -m "$2") model=$(realpath "$3") mmlu=$(realpath "$4") failed=0
cd "$(dirname "$0")/../.."
mkdir -p "$out"
gpus=$(nvidia-smi --list-gpus | wc -l)
gemma=(tests/bench/bench_gpu.py --folder "$folder" --tokenizer "$model" --mmlu "$mmlu")
int4=$folder/compressed-tensors

measure() {  # arguments: a name, then the words of a Python command
    echo "$1 ..."
    local code=0
    python "${@:2}" > "$out/$1.log" 2>&1 || code=$?
    echo "exit code $code" | tee -a "$out/$1.log"
    [ "$code" = 0 ] || failed=1
}

measure tests -m pytest tests/kernels/test_gpu.py tests/evaluation/test_prefix_attention.py \
    tests/workflow/test_families.py
measure linear tests/bench/bench_int4.py --device cuda
# Trainings first, on equal and on real lengths, with unsloth beside them; what is exported here is decoded below.
measure train "${gemma[@]}" --output "$out/train.json" --only format finetune merge quantize parity
measure score "${gemma[@]}" --output "$out/score.json" --only memory mmlu
asked=(--mmlu "$mmlu"
    --subjects nutrition moral_disputes high_school_psychology professional_medicine high_school_us_history)
measure lm-eval-model tests/bench/bench_lm_eval.py --checkpoint "$folder/model" "${asked[@]}" \
    --output "$out/lm-eval-model.json"
measure lm-eval-int4 tests/bench/bench_lm_eval.py --checkpoint "$folder/int4" --served "$int4" "${asked[@]}" \
    --output "$out/lm-eval-int4.json"
measure latency "${gemma[@]}" --output "$out/latency.json" --engines transformers vllm --batch-sizes 1 8 64 \
    --only "latency transformers" "latency vllm bf16" "latency vllm compressed" serving
measure calibrate "${gemma[@]}" --output "$out/calibrate.json" --only calibrate
for part in 4096 8192; do
    measure "step-$part" tests/bench/bench_step.py --folder "$folder" --output "$out/step-$part.json" --part "$part" \
        --arms lora distilled merged qad
done
measure divergence tests/bench/bench_divergence.py --folder "$folder" --output "$out/divergence.json"
for name in model int4; do
    measure "transformers-$name" tests/bench/bench_decoding.py --engine transformers --checkpoint "$folder/$name" \
        --output-len 256 --output "$out/transformers-$name.json"
done
measure vllm-model tests/bench/bench_decoding.py --engine vllm --checkpoint "$folder/model" --output-len 256 \
    --batch-sizes 1 8 64 256 --output "$out/vllm-model.json"
for backend in auto marlin humming; do
    measure "vllm-$backend" tests/bench/bench_decoding.py --engine vllm --checkpoint "$int4" --output-len 256 \
        --batch-sizes 1 8 64 256 --vllm "{\"linear_backend\": \"$backend\"}" --output "$out/vllm-$backend.json"
done
measure real-quantize scripts/quantize.py --checkpoint "$model" --method rtn --format torchao-plain \
    --scheme '{"type": "int", "num_bits": 4, "symmetric": false, "strategy": "group", "group_size": 128,
               "zero_point": "float"}' --output "$out/real-int4"
for name in "$model" "$out/real-int4"; do
    for examples in 0 5; do
        report=$out/real-mmlu-$(basename "$name")-$examples
        measure "$(basename "$report")" scripts/evaluate_mmlu.py --checkpoint "$name" --mmlu "$mmlu" --engine last_position \
            --num-fewshot "$examples" --batch-size 32 --dtype bfloat16 --device cuda \
            --output "$report.json" --samples "$report.parquet"
    done
done
if [ "$gpus" -gt 1 ]; then
    measure several "${gemma[@]}" --output "$out/several.json" --gpus 1 "$gpus" --engines vllm --batch-sizes 1 64 \
        --only "finetune lora" "finetune qad" "mmlu all" "latency vllm compressed"
    measure spread "${gemma[@]}" --output "$out/spread.json" --gpus "$gpus" --spread always \
        --only "finetune lora" "finetune qad"
    rm -rf "$folder"/{merged,gptq,awq}
    measure spread-27b tests/bench/bench_gpu.py --folder "$folder/27b" --shapes 27b --gpus "$gpus" --spread always \
        --output "$out/spread-27b.json" --only "finetune lora" "finetune qad"
fi
exit "$failed"
