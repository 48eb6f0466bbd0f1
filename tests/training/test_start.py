"""Test that a training from a calibrated checkpoint starts on its grids, exactly where calibration ended, or fails."""

import json
import shutil
import sys
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

import calibrated
import quantize
from int4_qat.checkpoint import blocks, loading
from int4_qat.config import limits
from int4_qat.config.recipe import Recipe, Target
from int4_qat.engines import inference
from int4_qat.quantization import grids, record, schemes
from int4_qat.system import files
from int4_qat.system.errors import InputError
from int4_qat.training import qat, run, start
from int4_qat.training.backends import transformers, unsloth
from programs import (
    INT4,
    RECIPE,
    SCHEMES,
    quantize_options,
    run_in_process,
    run_in_turn,
    seen,
    training_options,
)

each_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
each_target = pytest.mark.parametrize("target", get_args(Target))
LAYER = "model.language_model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def folders(untrained, tmp_path_factory):
    """Write calibrated folders of the stand-in, and return their paths by scheme."""
    return {
        scheme: calibrated.write(untrained / "model", tmp_path_factory.mktemp("start") / "model", scheme)
        for scheme in SCHEMES.values()
    }


@pytest.fixture
def folder(folders, tmp_path):
    """Return a copy of a calibrated folder, which a test may change."""
    return shutil.copytree(folders[INT4], tmp_path / "model")


def model_of(folder, scheme, target, ignore=()):
    recipe = RECIPE | seen(scheme, ignore) | {"qat_target": target}
    return transformers.add_adapters(folder, Recipe(**recipe), "cpu")


@pytest.fixture(scope="module")
def deployed(folders, tmp_path_factory):
    """Export the calibrated folders, and return the loaded models by scheme."""

    def export(scheme):
        output = tmp_path_factory.mktemp("export") / "int4"
        with pytest.MonkeyPatch.context() as patch:
            options = quantize_options(scheme, method="gptq")
            run_in_process(quantize, patch, "--checkpoint", folders[scheme], "--output", output, *options)
        return inference.load_model(output, torch.float32, "cpu")

    return {scheme: export(scheme) for scheme in SCHEMES.values()}


@each_scheme
@each_target
def test_it_begins_exactly_at_the_calibrated_model(folders, deployed, scheme, target):
    model, found = model_of(folders[scheme], scheme, target), grids.read(folders[scheme])
    stored, layers = calibrated.weights_of(folders[scheme], scheme), qat.lora_linears(model)
    assert layers.keys() == stored.keys() == found.keys()
    for name, layer in layers.items():
        expected = calibrated.nearest(stored[name], found[name]).float()
        seen_in_training = layer(torch.eye(layer.in_features)).T
        assert torch.equal(seen_in_training, expected)
        assert torch.equal(deployed[scheme].get_submodule(name).weight, expected)
    tokens = torch.randint(10, 200, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens).logits, deployed[scheme](input_ids=tokens).logits)


@each_scheme
def test_the_gradient_of_merged_is_autograds(folders, scheme):
    """It equals autograd's gradient of the plain formula on the given grid, with the rounding straight through."""
    model, name = model_of(folders[scheme], scheme, "merged"), LAYER
    layer, grid = qat.lora_linears(model)[name], grids.read(folders[scheme])[name]
    a, b, weight = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer.weight
    torch.nn.init.normal_(b, std=0.05, generator=torch.Generator().manual_seed(1))
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0)).requires_grad_()
    merged = weight + layer.scaling["default"] * b @ a
    rounded = calibrated.nearest(blocks.merge(weight, a, b, layer.scaling["default"]), grid).float()
    assert not torch.equal(rounded, calibrated.nearest(weight, grid).float())
    y = x @ (merged + (rounded - merged).detach()).T
    torch.testing.assert_close(layer(x), y)
    expected = torch.autograd.grad(torch.sin(y).sum(), [x, a, b])
    for ours, theirs in zip(torch.autograd.grad(torch.sin(layer(x)).sum(), [x, a, b]), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@each_scheme
def test_lora_a_stays_on_its_own_grid(folders, untrained, scheme):
    started, plain = (model_of(path, scheme, "base+lora_a") for path in (folders[scheme], untrained / "model"))
    layer, other = (qat.lora_linears(model)[LAYER] for model in (started, plain))
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer.lora_A["default"](x), other.lora_A["default"](x))
    assert not torch.equal(layer(x), other(x))


@pytest.mark.parametrize("target", [pytest.param("base", marks=pytest.mark.slow), "merged"])
def test_what_it_trains_is_what_is_exported(folders, texts, tmp_path, monkeypatch, target):
    """The whole chain runs; the export has the scales and zero points of the calibration."""
    scheme = SCHEMES["integer"]
    recipe = RECIPE | seen(scheme) | {"qat_target": target, "max_steps": 4}
    outputs = {"adapter": tmp_path / "adapter", "checkpoints": tmp_path / "checkpoints", "log-table": tmp_path / "log"}
    folder, merged, exported = ["--model", folders[scheme]], tmp_path / "bf16", tmp_path / "int4"
    training = [word for name, place in outputs.items() for word in (f"--{name}", place)]
    adapter, parity = ["--adapter", outputs["adapter"]], tmp_path / "parity.json"
    run_in_turn(
        monkeypatch,
        ("finetune", *folder, "--texts", f"questions={texts}", "--recipe", json.dumps(recipe), *training),
        ("merge", *folder, *adapter, "--output", merged),
        ("quantize", "--checkpoint", merged, "--output", exported, *quantize_options(scheme)),
        ("check_parity", *folder, *adapter, "--checkpoint", exported, "--texts", texts, "--output", parity),
    )
    assert files.read_json(outputs["adapter"] / record.RECORD)["grids"] == "given"
    report = files.read_json(parity)
    assert report["weights_that_differ"] == 0
    assert (report["relative_logit_difference"] == 0) == (target == "merged")
    stored, model = grids.read(folders[scheme]), loading.load(exported, torch.float32, "cpu")
    for name, grid in stored.items():
        weight = model.get_submodule(name).weight
        assert torch.equal(weight.scale, grid.scale)
        assert torch.equal(weight.zero_point, grid.zero_point)


def test_other_grids_are_another_training(folder, untrained, texts, tmp_path):
    options = training_options(untrained, texts, tmp_path)._replace(model=folder)
    recipe = Recipe(**RECIPE | seen())
    before = run.settings(options, recipe, transformers)
    assert run.settings(options, recipe, transformers) == before
    (folder / grids.FILE).touch()
    assert run.settings(options, recipe, transformers) != before


def test_a_linear_without_a_grid_is_refused(folder):
    stored = load_file(folder / grids.FILE)
    save_file({key: part for key, part in stored.items() if not key.startswith(LAYER)}, folder / grids.FILE)
    with pytest.raises(InputError, match=f"^start: expected a grid for each linear .* found none for {LAYER}$"):
        model_of(folder, INT4, "merged")


def test_what_is_ignored_needs_none(untrained, tmp_path):
    folder = calibrated.write(untrained / "model", tmp_path / "model", INT4, ["up_proj", "down_proj"])
    layers = qat.lora_linears(model_of(folder, INT4, "base", ["up_proj", "down_proj"]))
    given = grids.read(folder)
    assert layers.keys() - given.keys() == {name for name in layers if name.endswith(("up_proj", "down_proj"))}
    for name, stored in calibrated.weights_of(folder, INT4).items():
        expected = calibrated.nearest(stored, given[name]) if name in given else stored
        assert torch.equal(layers[name].base_layer.weight, expected.float())


@pytest.mark.parametrize(
    ("scheme", "ignore", "key"),
    [(SCHEMES["integer"], [], "scheme"), (schemes.int4(32), [], "scheme"), (INT4, ["up_proj"], "ignore")],
)
def test_a_calibration_for_something_else_is_refused(folder, scheme, ignore, key):
    with pytest.raises(InputError) as caught:
        model_of(folder, scheme, "merged", ignore)
    expected, found = seen(scheme, ignore)[key], seen()[key]
    assert str(caught.value) == f"{folder}: expected a model calibrated with {key} {expected}, found {found}"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, "{folder}: expected no grids, since quantization is null, found grids of gptq"),
        (
            seen() | {"distillation": {"weight": 1.0, "tokens": "all", "temperature": 1.0}},
            "--base: expected a folder with the base, since {folder} is calibrated, found none",
        ),
    ],
)
def test_what_no_training_can_do_from_there_is_one_line(folder, texts, tmp_path, change, problem):
    options = training_options(tmp_path, texts, tmp_path)
    assert options.model == folder
    with pytest.raises(InputError) as caught:
        run.train(options, Recipe(**RECIPE | change), transformers)
    assert str(caught.value) == problem.format(folder=folder)
    assert not options.checkpoints.exists()


def test_unsloth_trains_on_no_given_grids(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastModel=None))
    recipe = Recipe(**RECIPE | seen(limits.UNSLOTH_SCHEME) | {"backend": "unsloth", "qat_target": "base+lora_a"})
    with pytest.raises(InputError, match=r"^finetune\.start: expected null, since unsloth cannot train on given grids"):
        unsloth.add_adapters(folder, recipe, "cuda")


@pytest.mark.parametrize("lost", [grids.FILE, record.CALIBRATION])
def test_a_folder_that_lost_its_grids_or_their_record_begins_nothing(lost, folder):
    (folder / lost).unlink()
    with pytest.raises(InputError, match=f"{lost}: expected a file next to .*, found none; re-run calibrate"):
        start.method_of(folder)
