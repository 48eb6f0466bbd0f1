"""Three quantizations side by side in one run, each with an arm that trains in it: every chain is whole and exact."""

import json
import shutil
from pathlib import Path

import pytest

from int4_qat.quantization import schemes
from programs import SCHEMES
from workflows import Run, copy_workflow, small_config, write_config

pytestmark = pytest.mark.slow

ARMS = {f"qat_{name}": name for name in SCHEMES}


@pytest.fixture(scope="module")
def chain(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a small run with a base and an arm in each scheme; the arms have different targets."""
    folder = tmp_path_factory.mktemp("quantizations")
    config = small_config(shutil.copytree(untrained, folder / "standin"))
    plan = {"method": "rtn", "formats": ["torchao-plain"]}
    config["quantizations"] = {name: scheme.words | plan for name, scheme in SCHEMES.items()}
    targets = dict(zip(ARMS, ("base", "base+lora_a", "merged"), strict=True))
    config["finetune"]["arms"] = {arm: {"quantization": ARMS[arm], "qat_target": targets[arm]} for arm in ARMS}
    config["variants"] = ["base-bf16", *(f"base-{name}" for name in SCHEMES), *(f"{arm}-{ARMS[arm]}" for arm in ARMS)]
    config["plots"]["colours"] = {}
    config["publish"]["variant"] = "qat_integer-integer"
    path, directory = write_config(config, folder / "config.yaml"), folder / "directory"
    result = Run(copy_workflow(folder / "workflow"), folder / "standin", path, directory).snakemake()
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


def test_each_variant_is_measured_against_the_base_in_its_own_scheme(chain):
    rows = {row["name"]: row for row in json.loads((chain / "summary.json").read_text())["variants"]}
    expected = {f"{weights}-{name}": f"base-{name}" for name in SCHEMES for weights in ("base", f"qat_{name}")}
    assert {name: row["quantized_baseline"] for name, row in rows.items() if name != "base-bf16"} == expected
    assert all(row["mmlu"]["questions"] == 114 for row in rows.values())


def test_the_schemes_are_different_weights_of_one_size(chain):
    folders = [chain / f"base-{name}" / "checkpoint" for name in SCHEMES]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert len(set(weights)) == len(SCHEMES)
    assert len({json.loads((folder / "manifest.json").read_text())["bytes_after"] for folder in folders}) == 1
