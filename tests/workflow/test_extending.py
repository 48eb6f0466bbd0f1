"""Test what docs/extending.md promises: one file adds a method, and runs that do not name it are unaffected."""

import json

import pytest
import yaml

from int4_qat.checkpoint import weight_files
from int4_qat.quantization import plain_weight
from workflows import planned, write_config

pytestmark = pytest.mark.slow

LOWER = '''"""The value below the nearest one."""

from int4_qat.quantization.methods import rtn

NEEDS = ()


def quantize(blocks, scheme):
    for rows, quantized in rtn.quantize(blocks, scheme):
        yield rows, quantized._replace(codes=(quantized.codes - 1).clamp(min=-8))
'''
WORD = "one-lower"
ONE_VARIANT = {
    "quantize": 1,
    "evaluate_divergence": 1,
    "evaluate_mmlu": 1,
    "gather_mmlu": 1,
    "measure_memory": 1,
    "measure_latency": 1,
}
SUMMARY = {"report_costs": 1, "summarize": 1, "plot_results": 1, "model_card": 1, "record_provenance": 1}


@pytest.fixture
def method(small_run):
    path = small_run.workflow / "scripts" / "int4_qat" / "quantization" / "methods" / "one_lower.py"
    path.write_text(LOWER)
    yield path
    path.unlink()


@pytest.fixture
def lower(small_run, tmp_path):
    """Write a config that adds a quantization by the new method, and return its path."""
    config = yaml.safe_load(small_run.config.read_text())
    config["quantizations"]["lower"] = config["quantizations"]["int4"] | {"method": WORD}
    config["variants"].append("base-lower")
    return write_config(config, tmp_path / "config.yaml")


def test_a_new_method_is_one_file(small_run, method, lower):
    assert planned(small_run.snakemake("--dry-run")) == {}
    result = small_run.snakemake("--dry-run", "--configfile", lower)
    assert planned(result) == ONE_VARIANT | SUMMARY | {"render_pages": 1}
    folder = small_run.directory / "results" / "demo" / "base-lower" / "checkpoint"
    result = small_run.snakemake(folder.relative_to(small_run.directory), "--configfile", lower)
    assert result.returncode == 0, result.stderr[-3000:]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["method"], manifest["weights_that_differ"]) == (WORD, 0)
    codes, rounded = (codes_of(path) for path in (folder, folder.parents[1] / "base-int4" / "checkpoint"))
    assert all((codes[key] == (rounded[key] - 1).clamp(min=-8)).all() for key in codes)


def test_an_unknown_method_is_a_line(small_run, lower):
    result = small_run.snakemake("--dry-run", "--configfile", lower)
    assert result.returncode == 1
    assert f"config error: quantizations.lower.method: expected one of awq, gptq, rtn, found '{WORD}'" in result.stderr


def codes_of(folder):
    stored = weight_files.stored_tensors(folder)
    packed = {key: tensor for key, tensor in stored.items() if key.endswith("_weight_qdata")}
    return {key: plain_weight.unpack(tensor.read().view(tensor.shape)) for key, tensor in packed.items()}
