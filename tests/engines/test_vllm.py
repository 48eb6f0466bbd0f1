"""Test vLLM's CPU build, with its own int4 kernel, on the stand-in in bf16 and int4: latency, serving, failures."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

import measure_latency
from int4_qat.engines import inference, vllm_process
from int4_qat.system.errors import InputError
from programs import ROOT, SCHEMES, environment, quantize_options, run_script
from workflows import Run, copy_workflow, small_config, write_config

pytestmark = pytest.mark.slow

CPU = ["--enforce-eager", "--max-model-len", "512", "--model-impl", "transformers"]
ENVIRONMENT = Path(os.environ.get("VLLM_ENVIRONMENT", ROOT / ".venv-vllm"))


@pytest.fixture(scope="module")
def vllm():
    """Return the variables to run programs and rules in the environment of `make vllm-cpu`.

    No server answers at the proxy that they name, so requests to a server fail if they go through it.
    """
    nowhere = "http://127.0.0.1:9"
    return environment("vllm") | {"VLLM_CPU_KVCACHE_SPACE": "1", "HTTP_PROXY": nowhere, "http_proxy": nowhere}


@pytest.fixture(scope="module")
def talkative(untrained, tmp_path_factory):
    """Return a copy of the stand-in that begins no answer with an end token.

    The untrained stand-in may: answers are sampled, and an end token may be among the 20 likeliest tokens. Here the
    logit of each end token is zero, and a hundred other tokens have greater ones.
    """
    folder = shutil.copytree(untrained, tmp_path_factory.mktemp("talkative") / "standin")
    ends = json.loads((folder / "model" / "config.json").read_text())["eos_token_id"]
    path = folder / "model" / "model.safetensors"
    weights = load_file(path)
    weights["language_model.model.embed_tokens.weight"][ends] = 0
    save_file(weights, path, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def served(vllm, talkative, tmp_path_factory):
    """Run the rules that use vLLM, in its environment, and return the folder with the results."""
    folder = tmp_path_factory.mktemp("vllm run")
    config = small_config(talkative)
    for entry in config["quantizations"].values():
        entry |= {"zero_point": "integer", "formats": ["torchao-plain", "compressed-tensors"]}
    config["evaluation"]["latency"] |= {"engine": "vllm", "dtype": "bfloat16", "vllm_arguments": CPU, "repeats": 1}
    config["evaluation"]["serving"] = {
        "dtype": "bfloat16",
        "concurrency": [1, 8],
        "max_tokens": 16,
        "vllm_arguments": CPU,
        "time_limit": 300,
    }
    path = write_config(config, folder / "config.yaml")
    run = Run(copy_workflow(folder / "workflow"), talkative, path, folder / "directory")
    targets = ["base-bf16/latency.json", "base-int4/latency.json", "base-int4/serving.json"]
    result = run.snakemake(*(f"results/demo/{target}" for target in targets), env=vllm)
    assert result.returncode == 0, result.stderr[-5000:]
    return run.directory / "results" / "demo"


@pytest.mark.parametrize("variant", ["base-bf16", "base-int4"])
def test_latency_has_the_fields_of_the_transformers_engine(served, untrained, tmp_path, variant):
    report = json.loads((served / variant / "latency.json").read_text())
    options = ["--checkpoint", untrained / "model", "--dtype", "bfloat16", "--engine", "transformers"]
    options += ["--input-len", 8, "--output-len", 4, "--batch-sizes", 1, 2, "--warmup", 0, "--iterations", 2]
    result = run_script("measure_latency", *options, "--repeats", 2, "--output", tmp_path / "latency.json")
    assert result.returncode == 0, result.stderr
    other = json.loads((tmp_path / "latency.json").read_text())
    assert report.keys() == other.keys()
    assert [batch.keys() for batch in other["batches"]] == [report["batches"][0].keys()] * 2
    assert (report["engine"], report["engine_version"]) == ("vllm", "0.32.0+cpu")
    assert report["dequantized"] is False
    assert report["int4_path"] == (None if variant == "base-bf16" else "CPUWNA16LinearKernel")
    assert other["batches"][1]["std_s"] > 0
    own = json.loads((served / variant / "vllm" / "latency_batch1_repeat0.json").read_text())
    assert report["latencies_s"] == own["latencies"]
    assert report["mean_s"] == pytest.approx(own["avg_latency"])
    assert "Avg latency" in (served / variant / "vllm" / "latency_batch1_repeat0.log").read_text()


# Print the weights that vLLM's loader yields for a folder, and the modules that it treats as not quantized.
READ = """
import json, sys
from pathlib import Path
from vllm.model_executor.layers.quantization.torchao import should_skip
from vllm.model_executor.model_loader.weight_utils import safetensors_weights_iterator

folder, modules = Path(sys.argv[1]), json.loads(sys.argv[2])
weights = safetensors_weights_iterator([str(folder / "model.safetensors")], False, "torchao")
kept = json.loads((folder / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
print(json.dumps([[name for name, _ in weights], [name for name in modules if should_skip(name, kept)]]))
"""


@pytest.mark.parametrize("ignore", [["lm_head", "vision_tower", "multi_modal_projector"], ["lm_head", "down_proj"]])
def test_vllm_reads_every_weight_and_knows_what_is_not_in_int4(vllm, untrained, tmp_path, ignore):
    """With the second list, some linears of the vision tower are in int4, and others are too narrow for it."""
    paths = ["--checkpoint", untrained / "model", "--output", tmp_path / "int4"]
    result = run_script("quantize", *paths, *quantize_options(ignore=ignore))
    assert result.returncode == 0, result.stderr
    layers = json.loads((tmp_path / "int4" / "manifest.json").read_text())["layers"]
    (source,) = ENVIRONMENT.glob("lib/*/site-packages/vllm/model_executor/models/gemma3_mm.py")
    mapper = source.read_text().partition("orig_to_new_prefix={")[2].partition("}")[0]
    prefixes = dict(re.findall(r'"(\S+)": "(\S+)"', mapper))
    assert len(prefixes) == 4

    def renamed(name):
        (prefix,) = (prefix for prefix in prefixes if f"{name}.".startswith(prefix))
        theirs = prefixes[prefix] + f"{name}.".removeprefix(prefix).removesuffix(".")
        return theirs.replace("vision_tower.", "vision_tower.vision_model.")  # a level that transformers 5 left out

    modules = {renamed(layer["name"]): layer["quantized"] for layer in layers if layer["name"] != "lm_head"}
    command = ["python", "-c", READ, tmp_path / "int4", json.dumps(list(modules))]
    shown = subprocess.run(command, env=vllm, capture_output=True, text=True, check=True).stdout
    weights, skipped = json.loads(shown.splitlines()[-1])
    assert sorted(weights) == sorted(load_file(untrained / "model" / "model.safetensors"))
    assert set(skipped) == {name for name, quantized in modules.items() if not quantized}


# Write the tokens that vLLM finds likeliest after some prompts, with their log-probabilities.
LIKELIEST = """
import json, sys

def main():
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    folder, prompts, output = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
    llm = LLM(folder, dtype="bfloat16", enforce_eager=True, max_model_len=64, model_impl="transformers")
    answers = llm.generate(
        [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], SamplingParams(max_tokens=1, logprobs=10)
    )
    found = [answer.outputs[0].logprobs[0] for answer in answers]
    with open(output, "w") as stream:
        json.dump([{str(token): entry.logprob for token, entry in each.items()} for each in found], stream)

if __name__ == "__main__":
    main()
"""


def test_vllm_computes_in_int4_with_compressed_tensors(vllm, untrained, tmp_path):
    """vLLM uses its own kernel and agrees with transformers on torchao's folder, which has the same weights."""
    prompts = [[2, 5, 6, 9, 30, 41], [2, 77, 12, 13, 99, 100, 3, 4], [2, 200, 201, 55]]
    for word in ("compressed-tensors", "torchao-plain"):
        options = quantize_options(SCHEMES["integer"])
        options[options.index("--format") + 1] = word
        paths = ["--checkpoint", untrained / "model", "--output", tmp_path / word]
        assert run_script("quantize", *paths, *options).returncode == 0
    program = tmp_path / "likeliest.py"
    program.write_text(LIKELIEST)
    command = ["python", program, tmp_path / "compressed-tensors", json.dumps(prompts), tmp_path / "found.json"]
    shown = subprocess.run(command, env=vllm, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr[-3000:]
    assert "Using CPUWNA16LinearKernel for CompressedTensorsWNA16" in shown.stdout + shown.stderr
    found = json.loads((tmp_path / "found.json").read_text())

    def differences(folder):
        model = inference.load_model(folder, torch.bfloat16, "cpu")
        for prompt, likeliest in zip(prompts, found, strict=True):
            expected = model(input_ids=torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)
            yield max(abs(expected[int(token)].item() - value) for token, value in likeliest.items())

    assert max(differences(tmp_path / "torchao-plain")) < min(differences(untrained / "model")) / 2


CHOSEN = "INFO [compressed_tensors_wNa16.py:138] Using MacheteLinearKernel for CompressedTensorsWNA16\n"
# Make vLLM log its warning for a layer that the kernel of --linear-backend does not support.
FALL_BACK = """
from vllm.model_executor.kernels import linear
linear._filter_kernels_by_backend("marlin", [])
"""


def test_the_kernels_are_those_of_the_log_and_none_is_an_error(served, tmp_path):
    folder, log = served / "base-int4" / "compressed-tensors", tmp_path / "serve.log"
    log.write_text(CHOSEN + CHOSEN.replace("Machete", "Marlin") + CHOSEN)
    assert vllm_process.kernel_of(folder, log) == "MacheteLinearKernel, MarlinLinearKernel"
    assert vllm_process.kernel_of(served / "base-int4" / "checkpoint", log) is None
    log.write_text("")
    with pytest.raises(InputError, match="expected the name of an int4 kernel, found none"):
        vllm_process.kernel_of(folder, log)


def test_a_fall_back_that_vllm_only_warns_of_is_an_error(vllm, served, tmp_path):
    log = tmp_path / "serve.log"
    with log.open("w") as stream:
        subprocess.run(["python", "-c", FALL_BACK], env=vllm, stdout=stream, stderr=stream, check=True)
        stream.write(CHOSEN)
    with pytest.raises(
        InputError, match="expected the kernel that --linear-backend names, found '--linear-backend=mar"
    ):
        vllm_process.kernel_of(served / "base-int4" / "compressed-tensors", log)


def test_a_served_model_answers_in_int4(served):
    report = json.loads((served / "base-int4" / "serving.json").read_text())
    assert report["kernel"] == "CPUWNA16LinearKernel"
    assert report["likeliest_token"] in report["likeliest_tokens_in_transformers"]
    assert report["answer"]["content"]
    assert [load["requests"] for load in report["load"]] == [1, 8]
    lengths = json.loads((served / "base-int4" / "vllm" / "serve_8.json").read_text())["input_lens"]
    assert lengths == [report["answer"]["prompt_tokens"]] * 8  # the chat template is applied once
    assert [load["tokens"] for load in report["load"]] == [16, 8 * 16]
    assert all(0 < load["time_to_first_token_s"]["mean"] < load["seconds"] for load in report["load"])
    assert "/health" in (served / "base-int4" / "vllm" / "serve.log").read_text()


def script(name, checkpoint, folder, *words):
    """Return a program's command line in vLLM's environment."""
    options = ["--checkpoint", checkpoint, "--dtype", "bfloat16", "--output", folder / "report.json"]
    if name == "measure_latency":
        options += ["--engine", "vllm", "--input-len", 8, "--output-len", 4, "--batch-sizes", 1]
        options += ["--warmup", 0, "--iterations", 2, "--vllm-runs", folder]
    else:
        options += ["--served", checkpoint, "--concurrency", 1, "--max-tokens", 400, "--vllm-runs", folder]
    python = ENVIRONMENT / "bin" / "python"
    return [str(word) for word in [python, ROOT / "scripts" / f"{name}.py", *options, *words]]


def left_over(folder):
    """Return the processes that write to a log in a folder, as vLLM's do."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.readlink(f"/proc/{process.pid}/fd/1").startswith(str(folder)):
                found.append(process)
    return found


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("measure_latency", ["--", "--no-such-option"], "vllm bench ended with exit code 2"),
        ("measure_latency", ["--vllm-time-limit", "3", "--", *CPU], "vllm bench took more than 3 s"),
        ("check_serving", ["--", "--no-such-option"], "vllm serve ended with exit code 2"),
        ("check_serving", ["--time-limit", "3", "--", *CPU], "vllm serve was not ready after 3 s"),
    ],
)
def test_a_vllm_that_fails_or_hangs_is_one_line_with_its_last_words(vllm, untrained, tmp_path, name, words, expected):
    command = script(name, untrained / "model", tmp_path, *words)
    result = subprocess.run(command, capture_output=True, text=True, env=vllm)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    (log,) = tmp_path.glob("*.log")
    assert last.startswith(f"error: {expected}")
    assert f"the end of {log}: " in last
    assert not (tmp_path / "report.json").exists()
    assert left_over(tmp_path) == []


def test_the_last_words_name_the_cause(vllm, served, tmp_path):
    """vLLM has no CPU kernel for torchao's int4."""
    log = tmp_path / "bench.log"
    program = (
        "import sys; from pathlib import Path; from int4_qat.engines import vllm_process; "
        "from int4_qat.system import errors; "
        "errors.run(lambda: vllm_process.run(['bench', 'latency', '--model', *sys.argv[2:]], Path(sys.argv[1]), 300))"
    )
    command = [ENVIRONMENT / "bin" / "python", "-c", program, log, served / "base-int4" / "checkpoint", *CPU]
    result = subprocess.run(command, capture_output=True, text=True, env=vllm | {"PYTHONPATH": ROOT / "scripts"})
    assert result.returncode == 1
    assert "ImportError: Requires mslk >= 1.0.0" in result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "expected a JSON file, found none"),
        ('{"avg_latency": 1.0, "latencies": [0.9, ', "expected valid JSON"),
        ('{"avg_latency": 1.0, "latencies": [0.9]}', "expected 2 latencies, found 1"),
        ('{"avg_latency": 1.0}', "expected 2 latencies, found 0"),
    ],
)
def test_a_partial_json_is_one_line_with_the_last_words(tmp_path, content, expected):
    report, log = tmp_path / "latency.json", tmp_path / "latency.log"
    log.write_text("first\nRuntimeError: out of cards\nlast\n")
    if content is not None:
        report.write_text(content)
    with pytest.raises(InputError, match=rf"{expected}.*the end of .*latency.log: RuntimeError: out of cards \| last$"):
        measure_latency.read_latencies(report, log, 2)


@pytest.mark.parametrize(
    ("number", "state"),
    [
        (signal.SIGTERM, "Application startup complete"),
        (signal.SIGKILL, "Application startup complete"),
        (signal.SIGINT, "Loading weights took"),
        (signal.SIGTERM, "POST /v1/chat/completions"),  # just before vllm bench serve, or during it
    ],
)
def test_nothing_is_left_of_a_server_whose_check_is_interrupted(vllm, talkative, tmp_path, number, state):
    process = subprocess.Popen(script("check_serving", talkative / "model", tmp_path, "--", *CPU), env=vllm)
    log = tmp_path / "serve.log"
    wait_for(lambda: log.exists() and state in log.read_text())
    assert len(left_over(tmp_path)) >= 3
    process.send_signal(number)
    assert process.wait(300) != 0
    wait_for(lambda: not left_over(tmp_path))


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError("waited in vain")


def test_share_of_the_bandwidth_limit(untrained):
    """The card's base model has 23.5 GB of text weights; 256 tokens took 3.73 s on an H100, which reads 3,350 GB/s."""
    percent = measure_latency.bandwidth_limit_percent(23_500_000_000, 256, 3.73, "NVIDIA H100 80GB HBM3")
    assert percent == pytest.approx(48.1, abs=0.1)
    assert measure_latency.bandwidth_limit_percent(23_500_000_000, 256, 3.73, "cpu") is None
    model = inference.load_model(untrained / "model", torch.bfloat16, "cpu")
    weights = sum(weight.nbytes for weight in model.model.language_model.parameters())
    assert measure_latency.text_bytes(untrained / "model", torch.bfloat16) == weights


def test_what_a_job_compiles_is_kept_for_its_other_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")  # as in a shell in which the card's command ran
    kept, thrown_away = vllm_process.environment(tmp_path), vllm_process.environment()
    assert (kept["VLLM_DISABLE_COMPILE_CACHE"], kept["VLLM_CACHE_ROOT"]) == ("0", str(tmp_path))
    assert thrown_away["VLLM_DISABLE_COMPILE_CACHE"] == "1"
