"""Test that many ways to int4 work side by side in one run, and that every chain is complete and exact.

There are three schemes, each with an arm that trains in it, two calibrated methods, and a training that starts from a
calibrated base.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from int4_qat.quantization import grids, schemes
from programs import SCHEMES, entry_of
from workflows import Run, copy_workflow, small_config, write_config

pytestmark = pytest.mark.slow

ARMS = {f"qat_{name}": name for name in SCHEMES} | {"begun": "integer"}
START = {"quantization": "integer", "qat_target": "merged", "start": "gptq"}
CALIBRATED = {"base-gptq": "gptq", "base-awq": "awq", "lora-gptq": "gptq"}


@pytest.fixture(scope="module")
def chain(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a small config with a base and an arm in each scheme, up to the exports and the arms' parity.

    The arms have different targets. Nothing is measured, since other runs do that and it would take two thirds of the
    time. Return the folder of the results.
    """
    folder = tmp_path_factory.mktemp("quantizations")
    config = small_config(shutil.copytree(untrained, folder / "standin"))
    config["quantizations"] = {name: entry_of(scheme) for name, scheme in SCHEMES.items()}
    config["quantizations"] |= {name: entry_of(SCHEMES["integer"]) | {"method": name} for name in ("gptq", "awq")}
    targets = dict(zip(SCHEMES, ("base", "base+lora_a", "merged"), strict=True))
    arms = {f"qat_{name}": {"quantization": name, "qat_target": targets[name]} for name in SCHEMES}
    config["finetune"]["arms"] = arms | {"begun": START, "lora": {"quantization": None}}
    config["variants"] = ["base-bf16", *(f"base-{name}" for name in SCHEMES), *(f"{arm}-{ARMS[arm]}" for arm in ARMS)]
    config["variants"] += CALIBRATED
    config["plots"]["colours"] = {}
    config["publish"]["variant"] = "qat_integer-integer"
    path, directory = write_config(config, folder / "config.yaml"), folder / "directory"
    exports = [f"results/demo/{name}/checkpoint" for name in config["variants"][1:]]
    parity = [f"results/demo/{arm}-{name}/parity.json" for arm, name in ARMS.items()]
    run = Run(copy_workflow(folder / "workflow"), folder / "standin", path, directory)
    result = run.snakemake(*exports, *parity)
    assert result.returncode == 0, result.stderr[-5000:]
    return directory / "results" / "demo"


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("weights", ["base", "qat"])
def test_each_export_is_in_its_own_scheme(chain, weights, name):
    weights = "base" if weights == "base" else f"qat_{name}"
    manifest = json.loads((chain / f"{weights}-{name}" / "checkpoint" / "manifest.json").read_text())
    assert schemes.of_words(manifest["scheme"]) == SCHEMES[name]
    assert (manifest["method"], manifest["format"], manifest["weights_that_differ"]) == ("rtn", "torchao-plain", 0)
    assert sum(layer["quantized"] for layer in manifest["layers"]) == 3 * 7


@pytest.mark.parametrize(("arm", "name"), ARMS.items())
def test_training_saw_what_is_deployed(chain, arm, name):
    parity = json.loads((chain / f"{arm}-{name}" / "parity.json").read_text())
    assert parity["weights_that_differ"] == 0
    assert parity["scheme"] == SCHEMES[name].words
    record = json.loads((chain / arm / "adapter" / "qat.json").read_text())
    assert (record["scheme"], record["target"]) == (SCHEMES[name].words, parity["target"])
    assert (parity["relative_logit_difference"] == 0) == (parity["target"] == "merged")


@pytest.mark.parametrize("variant", CALIBRATED)
def test_each_calibrated_export_is_by_its_method(chain, variant):
    manifest = json.loads((chain / variant / "checkpoint" / "manifest.json").read_text())
    assert schemes.of_words(manifest["scheme"]) == SCHEMES["integer"]
    assert (manifest["method"], manifest["weights_that_differ"]) == (CALIBRATED[variant], 0)


def test_a_training_begins_at_what_calibration_left(chain):
    """Its merged checkpoint keeps the grids of base-gptq; that of an arm without a start has none."""
    given, kept = (grids.read(chain / place) for place in ("base-gptq/calibrated", "begun-bf16/checkpoint"))
    assert len(given) == 3 * 7
    assert given.keys() == kept.keys()
    assert all(torch.equal(part, other) for name in given for part, other in zip(given[name], kept[name], strict=True))
    assert grids.read(chain / "qat_integer-bf16" / "checkpoint") == {}


def test_the_exports_are_different_weights_of_one_size(chain):
    folders = [path.parent for path in chain.glob("*/checkpoint/manifest.json")]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert len(set(weights)) == len(weights) == len(SCHEMES) + len(ARMS) + len(CALIBRATED)
    assert len({json.loads((folder / "manifest.json").read_text())["bytes_after"] for folder in folders}) == 1
