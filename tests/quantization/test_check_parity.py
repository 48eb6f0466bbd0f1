"""An exported model equals the trained one, or one line says where they differ."""

import json
import re
import shutil

import pytest
import torch

import calibrated
import check_parity
import merge
import quantize
from int4_qat.checkpoint import weight_files
from int4_qat.config.recipe import Recipe
from int4_qat.engines import inference
from int4_qat.quantization import grids, int4, plain_weight, record, schemes
from int4_qat.system import files
from int4_qat.system.errors import InputError
from int4_qat.training import qat
from int4_qat.training.backends import transformers
from programs import INT4, RECIPE, SCHEMES, quantize_options, run_in_process, seen

LAYER = "model.language_model.layers.0.mlp.down_proj"


class Arm:
    """An arm's folders, built as the rules do, from a random adapter instead of a trained one."""

    def __init__(self, model, folder, monkeypatch, start=None, **changes):
        recipe = Recipe(**RECIPE | changes)
        self.folder, self.monkeypatch, self.base = folder, monkeypatch, model
        self.model = transformers.add_adapters(self.base, recipe, "cpu")
        torch.manual_seed(1)
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        self.model.save_pretrained(folder / "adapter")
        files.write_json(folder / "adapter" / record.RECORD, qat.record(self.model, recipe, start))
        paths = ["--model", self.base, "--adapter", folder / "adapter", "--output", folder / "bf16"]
        run_in_process(merge, monkeypatch, *paths)

    def quantize(self, scheme=INT4, ignore=()):
        paths = ["--checkpoint", self.folder / "bf16", "--output", self.folder / "int4"]
        run_in_process(quantize, self.monkeypatch, *paths, *quantize_options(scheme, ignore))

    def check(self, texts):
        paths = ["--model", self.base, "--adapter", self.folder / "adapter", "--checkpoint", self.folder / "int4"]
        options = ["--texts", texts, "--output", self.folder / "parity.json"]
        run_in_process(check_parity, self.monkeypatch, *paths, *options)
        return json.loads((self.folder / "parity.json").read_text())


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_merged_ships_what_it_trained(untrained, texts, tmp_path, monkeypatch, scheme):
    arm = Arm(untrained / "model", tmp_path, monkeypatch, **seen(scheme), qat_target="merged")
    arm.quantize(scheme)
    report = arm.check(texts)
    assert (report["weights_that_differ"], report["relative_logit_difference"]) == (0, 0)
    assert (report["target"], report["scheme"]) == ("merged", scheme.words)


@pytest.mark.parametrize("scheme", [*SCHEMES.values(), None], ids=[*SCHEMES, "none"])
def test_base_and_lora_ship_something_else(untrained, texts, tmp_path, monkeypatch, scheme):
    arm = Arm(untrained / "model", tmp_path, monkeypatch, **(seen(scheme) if scheme else {}))
    arm.quantize(scheme or INT4)
    report = arm.check(texts)
    # an independent reference: a plain model that holds Q(W) + s·BA, or W + s·BA
    trained = inference.load_model(arm.base, torch.float32, "cpu")
    for name, layer in qat.lora_linears(arm.model).items():
        linear = trained.get_submodule(name)
        a, b = layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
        if scheme:
            linear.weight.data = int4.dequantize(int4.quantize(linear.weight.data, scheme))
        linear.weight.data += layer.scaling["default"] * b @ a
    deployed = inference.load_model(tmp_path / "int4", torch.float32, "cpu")
    batch = check_parity.first_tokens(texts, arm.base)
    assert report["tokens"] == sum(text.shape[1] for text in batch) > 100
    found, expected = (torch.cat(check_parity.logits(model, batch)) for model in (trained, deployed))
    difference = ((found - expected).norm() / expected.norm()).item()
    assert report["relative_logit_difference"] == pytest.approx(difference, rel=1e-3)
    assert 1e-3 < difference < 1
    assert report["weights_that_differ"] == 0


@pytest.mark.parametrize(
    ("scheme", "target"), [*((scheme, "merged") for scheme in SCHEMES.values()), (INT4, "base"), (INT4, "base+lora_a")]
)
def test_an_arm_that_starts_calibrated_ships_what_it_trained(untrained, texts, tmp_path, monkeypatch, scheme, target):
    model = calibrated.write(untrained / "model", tmp_path / "model", scheme)
    arm = Arm(model, tmp_path, monkeypatch, "gptq", **seen(scheme), qat_target=target)
    arm.quantize(scheme)
    report = arm.check(texts)
    assert report["weights_that_differ"] == 0
    assert (report["relative_logit_difference"] == 0) == (target == "merged")
    deployed, given = inference.load_model(tmp_path / "int4", torch.float32, "cpu"), grids.read(model)
    for name, merged in calibrated.weights_of(tmp_path / "bf16", scheme).items():
        assert torch.equal(deployed.get_submodule(name).weight, calibrated.nearest(merged, given[name]).float())


def test_grids_that_got_lost_or_came_by_are_refused(untrained, texts, tmp_path, monkeypatch):
    model = calibrated.write(untrained / "model", tmp_path / "model", INT4)
    arm = Arm(model, tmp_path, monkeypatch, "gptq", **seen())
    arm.quantize()
    arm.base = untrained / "model"
    with pytest.raises(InputError, match="expected an export on a given grid, as trained, found one on its own grid"):
        arm.check(texts)
    (tmp_path / "bf16" / "grids").rename(tmp_path / "grids")
    with pytest.raises(
        InputError, match=r"bf16: .* expected an export on a given grid, as trained, found one on its own grid"
    ):
        arm.quantize()
    other = Arm(untrained / "model", tmp_path / "other", monkeypatch, **seen())
    (tmp_path / "grids").rename(tmp_path / "other" / "bf16" / "grids")
    with pytest.raises(InputError, match="expected an export on its own grid, as trained, found one on a given grid"):
        other.quantize()


def test_a_mismatch_is_refused_before_anything_is_written(untrained, tmp_path, monkeypatch):
    arm = Arm(untrained / "model", tmp_path, monkeypatch, **seen(ignore=["up_proj"]))
    ignored = "model.language_model.layers.0.mlp.up_proj"

    def refused(message, **options):
        with pytest.raises(InputError, match=message):
            arm.quantize(**options)
        assert not (tmp_path / "int4").exists()

    for scheme in (schemes.int4(32), SCHEMES["integer"], SCHEMES["symmetric"]):
        refused(
            re.escape(f"expected training in {scheme.words}, found {INT4.words}"), scheme=scheme, ignore=["up_proj"]
        )
    refused(f"{ignored}: expected an export not in int4, as it was trained, found one in int4", ignore=())
    refused(
        f"{LAYER}: expected an export in int4, as it was trained, found one not in int4",
        ignore=["up_proj", "down_proj"],
    )


def test_an_export_of_other_weights_is_refused(untrained, texts, tmp_path, monkeypatch):
    arm = Arm(untrained / "model", tmp_path, monkeypatch, **seen())
    arm.quantize()
    whole = shutil.copytree(tmp_path / "int4", tmp_path / "whole")
    key = "language_model.model.layers.0.mlp.down_proj.weight"
    qdata = weight_files.stored_tensors(tmp_path / "int4")[plain_weight.part_name(key, plain_weight.CODES)]
    qdata.write(qdata.read(0, 1) ^ 1)
    with pytest.raises(InputError, match=f"1 weights differ from what training saw, the first in {key}"):
        arm.check(texts)
    shutil.rmtree(tmp_path / "int4")
    whole.rename(tmp_path / "int4")
    manifest = files.read_json(tmp_path / "int4" / "manifest.json")
    files.write_json(tmp_path / "int4" / "manifest.json", manifest | {"scheme": schemes.int4(32).words})
    with pytest.raises(InputError, match=r"expected training in .*'group_size': 32.*, found .*'group_size': 64"):
        arm.check(texts)
    assert not (tmp_path / "parity.json").exists()
