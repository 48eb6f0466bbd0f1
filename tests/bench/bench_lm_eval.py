"""Time MMLU's questions by evaluate_mmlu's engine and by lm-eval's own hf and vllm backends, on the same questions.

Each backend runs in its own process, one after the other. `questions_s` is the time for the questions alone, without
imports, loading and lm-eval's preparation, and `whole_mmlu_s` is that time multiplied up to all questions of MMLU, by
their characters. vLLM reads int4 in the layout of compressed-tensors; name that folder with --served.

    python tests/bench/bench_lm_eval.py --checkpoint /dev/shm/gemma/model --mmlu resources/mmlu --output lm_eval.json \\
        --subjects nutrition moral_disputes high_school_psychology professional_medicine high_school_us_history
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lm_eval
import pandas as pd
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from int4_qat.checkpoint import architecture
from int4_qat.data import mmlu
from int4_qat.engines import inference
from int4_qat.evaluation import mmlu_harness, scoring
from int4_qat.system import devices, files
from int4_qat.tokenizer import tokenization

OURS, HF, VLLM = scoring.LAST_POSITION, "hf", "vllm"
DTYPE = "bfloat16"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with the checkpoint, in bf16 or int4")
    parser.add_argument("--served", type=Path, help="folder with the same weights for vLLM; --checkpoint if omitted")
    parser.add_argument("--mmlu", required=True, type=Path, help="folder written by download_mmlu")
    parser.add_argument("--subjects", nargs="+", default=mmlu.SUBJECTS, help="subjects to ask; all if omitted")
    parser.add_argument("--limit", type=int, help="number of questions per subject; all if omitted")
    parser.add_argument("--num-fewshot", type=int, default=0, help="number of examples before each question")
    parser.add_argument("--batch-size", type=int, default=8, help="batch size of last_position")
    parser.add_argument("--hf-batch-size", type=int, default=16, help="batch size of lm-eval's hf backend, in choices")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"], help="device to run on")
    parser.add_argument("--backends", nargs="+", default=[OURS, HF, VLLM], choices=[OURS, HF, VLLM])
    parser.add_argument("--vllm", type=json.loads, default={}, help="further options of vLLM's LLM, as JSON")
    parser.add_argument("--output", required=True, type=Path, help="JSON file for all figures")
    parser.add_argument("--inside", choices=[OURS, HF, VLLM], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        files.write_json(arguments.output, measure(arguments, arguments.inside))
        return
    record = {"device": devices.name(arguments.device), "backends": {}}
    for backend in arguments.backends:
        record["backends"][backend] = in_process(backend, arguments.output)
        files.write_json(arguments.output, record)
        print(backend, json.dumps(record["backends"][backend]), flush=True)
    sys.exit(any("error" in figures for figures in record["backends"].values()))


def in_process(backend: str, output: Path) -> dict:
    """Return what this program measures of one backend in a process of its own, or the end of its log."""
    part, log = output.with_suffix(f".{backend}.json"), output.with_suffix(f".{backend}.log")
    with open(log, "w") as stream:
        command = [sys.executable, *sys.argv, "--inside", backend, "--output", str(part)]
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT).returncode
    return {"error": log.read_text()[-2_000:]} if code else files.read_json(part)


def measure(arguments: argparse.Namespace, backend: str) -> dict:
    """Return the seconds of loading and of the questions, and the mean log-likelihood of the right answers."""
    begun = time.perf_counter()
    model = load(arguments, backend)
    loaded = time.perf_counter()
    spent = []
    score = model.loglikelihood

    def timed(requests, *rest, **options):
        start = time.perf_counter()
        found = score(requests, *rest, **options)
        spent.append(time.perf_counter() - start)
        return found

    model.loglikelihood = timed
    scoring.say_less()
    with tempfile.TemporaryDirectory() as work, scoring.templates_compiled_once():
        include = mmlu_harness.lay_out(arguments.mmlu, Path(work))
        manager = TaskManager(include_path=str(include), include_defaults=False)
        tasks = [mmlu_harness.task_name(subject) for subject in arguments.subjects]
        found = lm_eval.simple_evaluate(
            model,
            tasks=tasks,
            num_fewshot=arguments.num_fewshot,
            limit=arguments.limit,
            task_manager=manager,
            bootstrap_iters=0,
        )
    samples = [sample for subject in found["samples"].values() for sample in subject]
    everything = sum(map(characters, pd.read_parquet(arguments.mmlu / "test.parquet").to_dict("records")))
    right = pd.Series([sample["filtered_resps"][sample["target"]][0] for sample in samples])
    return {
        "load_s": loaded - begun,
        "questions": len(samples),
        "questions_s": sum(spent),
        "whole_mmlu_s": sum(spent) * everything / sum(characters(sample["doc"]) for sample in samples),
        "mean_log_likelihood": right.mean(),
        "accuracy": pd.Series([sample["acc"] for sample in samples]).mean(),
    }


def characters(question: dict) -> int:
    """Return the number of characters of a question and its choices."""
    return len(question["question"]) + sum(map(len, question["choices"]))


def load(arguments: argparse.Namespace, backend: str):
    """Return lm-eval's model of one backend."""
    if backend == VLLM:
        from lm_eval.models.vllm_causallms import VLLM as Backend

        return Backend(
            pretrained=str(arguments.served or arguments.checkpoint),
            dtype=DTYPE,
            batch_size="auto",
            **{"max_model_len": 4096, "gpu_memory_utilization": 0.9} | arguments.vllm,
        )
    tokenizer = tokenization.load_as_is(arguments.checkpoint)
    if backend == OURS:
        options = scoring.options_of(vars(arguments) | {"dtype": DTYPE, "gpus": 1})
        return scoring.make_engine(OURS, options, tokenizer)
    model = inference.load_model(arguments.checkpoint, architecture.DTYPES[DTYPE], arguments.device)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=arguments.hf_batch_size)


if __name__ == "__main__":
    main()
