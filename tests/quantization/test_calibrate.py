"""Test the calibration of a whole model: the weights and grids that it finds, their export, and what is refused."""

import json
import random
import shutil

import pytest
import torch
import transformers

import calibrate
import in_memory
import quantize
from calibrated import nearest, weights_of
from families import FAMILIES
from int4_qat.checkpoint import loading, weight_files
from int4_qat.quantization import (
    calibration,
    grids,
    int4,
    layer_inputs,
    record,
    schemes,
)
from int4_qat.quantization.methods import gptq
from int4_qat.system import files, rooms
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization
from programs import quantize_options, run_in_process, run_script
from weights import normal

SCHEME = schemes.int4(64, schemes.INTEGER)
METHODS = ("gptq", "awq")
LENGTH, SAMPLES = 32, 6
BATCH = ["--samples", SAMPLES, "--length", LENGTH, "--batch-size", 4, "--seed", 0, "--dtype", "float32"]
each_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def run(llama, general_text, texts, tmp_path_factory):
    """Return a function that calibrates a checkpoint by a method on both kinds of text, and returns the folder."""

    def calibrated(method, checkpoint=llama, name="calibrated", scheme=SCHEME):
        folder = tmp_path_factory.mktemp(method) / name
        options = ["--scheme", json.dumps(scheme.words), "--method", method, "--texts", texts, general_text, *BATCH]
        with pytest.MonkeyPatch.context() as patch:
            run_in_process(calibrate, patch, "--checkpoint", checkpoint, *options, "--output", folder)
        return folder

    return calibrated


@pytest.fixture(scope="module")
def folders(run):
    """Return a calibrated folder for each method, by the method's name."""
    return {method: run(method) for method in METHODS}


def test_every_method_that_needs_texts_is_tested():
    needy = {word for word in rooms.words(rooms.METHODS) if rooms.load(rooms.METHODS, word).NEEDS}
    assert needy == set(METHODS)


@each_method
def test_two_runs_give_the_same_bytes(method, folders, run):
    assert files.digest(folders[method]) == files.digest(run(method))


@each_method
def test_only_what_the_method_changes_is_changed(method, folders, llama):
    stored, source = weight_files.stored_tensors(folders[method]), weight_files.stored_tensors(llama)
    assert stored.keys() == source.keys()
    changed = {key for key in source if weight_files.differing(source[key], stored[key])}
    linears = {f"{name}.weight" for name in grids.read(folders[method])}
    norms = {key for key in source if "layernorm" in key}
    assert changed == linears if method == "gptq" else linears & changed and changed <= linears | norms


@each_method
def test_the_export_is_the_nearest_on_the_grids(method, folders, tmp_path, monkeypatch):
    options = [*quantize_options(SCHEME), "--method", method]
    run_in_process(quantize, monkeypatch, "--checkpoint", folders[method], *options, "--output", tmp_path / "int4")
    manifest = files.read_json(tmp_path / "int4" / "manifest.json")
    assert (manifest["method"], manifest["weights_that_differ"]) == (method, 0)
    exported = loading.load(tmp_path / "int4", torch.bfloat16, "cpu")
    given = grids.read(folders[method])
    for name, weight in weights_of(folders[method], SCHEME).items():
        codes = in_memory.to_weight(exported.get_submodule(name).weight)
        expected = nearest(weight, given[name])
        assert torch.equal(int4.dequantize(codes).double(), expected.float().double())
    assert not (tmp_path / "int4" / grids.FILE).exists()


def outputs(model, tokens):
    with torch.no_grad():
        return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state


def distance(llama, deployed, tokens):
    """Return how far the given weights move the hidden states of a folder's model."""
    model = loading.load(llama, torch.float32, "cpu")
    before = outputs(model, tokens)
    for name, weight in deployed.items():
        model.get_submodule(name).weight.data = weight.float()
    return (outputs(model, tokens) - before).norm().item()


def test_gptq_is_nearer_to_the_model_than_rounding(llama, folders, words):
    weights, given = weights_of(folders["gptq"], SCHEME), grids.read(folders["gptq"])
    by_gptq = {name: nearest(weight, given[name]) for name, weight in weights.items()}
    rounded = {name: int4.fake_quantize(weight, SCHEME) for name, weight in weights_of(llama, SCHEME).items()}
    tokenizer = tokenization.load_tokenizer(llama)
    other = torch.tensor(
        [tokenizer("".join(random.Random(7).choices(words, k=60)))["input_ids"][:48] for _ in range(4)]
    )
    assert distance(llama, by_gptq, other) < 0.9 * distance(llama, rounded, other)


@pytest.mark.parametrize("family", ["llama", "gemma4-shared"])
def test_batches_of_another_size_find_the_same(family):
    config_class, values, _ = FAMILIES[family.removesuffix("-shared") + "-text" * family.endswith("shared")]
    shared = {"num_hidden_layers": 4, "layer_types": values.get("layer_types", []) * 2, "num_kv_shared_layers": 2}
    config = getattr(transformers, config_class)(**values | (shared if family.endswith("shared") else {}))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and "layers" in name]
    tokens = torch.randint(10, 1000, (6, LENGTH))

    def seen(batch_size):
        moments = []

        def listen(layer, scheme):
            moments.extend(layer_inputs.observe(layer, names).moments for names in layer_inputs.stages(layer))
            return calibration.own_grids(layer.linears, scheme)

        calibration.calibrate(model, tokens, names, listen, schemes.int4(32), batch_size)
        return moments

    for one, all_at_once in zip(seen(1), seen(6), strict=True):
        torch.testing.assert_close(one, all_at_once, rtol=1e-3, atol=1e-4)


def test_a_linear_that_no_layer_holds_is_rounded_on_its_own_grid(llama):
    model = loading.load(llama, torch.float32, "cpu")
    tokens = torch.randint(10, 1000, (2, LENGTH))
    before = model.lm_head.weight.clone()
    found = calibration.calibrate(model, tokens, ["lm_head"], gptq.calibrate, SCHEME, 2)
    assert torch.equal(model.lm_head.weight, before)
    assert torch.equal(found["lm_head"].scale, int4.quantize(before, SCHEME).scale)


def test_layers_between_which_something_happens_are_refused(llama):
    model = loading.load(llama, torch.float32, "cpu")
    model.model.layers[1].register_forward_pre_hook(lambda _, arguments: (arguments[0] * 2, *arguments[1:]))
    names = list(weights_of(llama, SCHEME))
    with pytest.raises(InputError, match="LlamaForCausalLM: expected layers that each run once, on the output of"):
        calibration.calibrate(model, torch.randint(10, 1000, (2, 8)), names, gptq.calibrate, SCHEME, 2)
    assert "forward" not in vars(model.model.layers[0])


def test_inputs_that_are_not_finite_are_refused(llama):
    model = loading.load(llama, torch.float32, "cpu")
    model.model.layers[0].input_layernorm.weight.data[3] = float("inf")
    names = list(weights_of(llama, SCHEME))
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_proj: expected finite inputs"):
        calibration.calibrate(model, torch.randint(10, 1000, (2, 8)), names, gptq.calibrate, SCHEME, 2)


def test_second_moments_and_drift_are_means_over_the_tokens():
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 8)
    layer = calibration.Layer(torch.nn.Sequential(linear), {"up": linear})
    bf16, given = normal(5, 4, 8, seed=1), normal(5, 4, 8, seed=2)
    calibration.undisturbed_output(layer, [((part,), {}) for part in bf16.split(2)])
    layer.calls = [((part,), {}) for part in given.split(2)]
    inputs = layer_inputs.observe(layer, ("up",))
    x, other = given.flatten(0, 1).double(), bf16.flatten(0, 1).double()
    expected = {"moments": x.T @ x / 20, "drift": (other - x).T @ x / 20, "magnitudes": x.abs().mean(0)}
    for key, values in expected.items():
        torch.testing.assert_close(getattr(inputs, key).double(), values, rtol=1e-5, atol=1e-6)


def calibrated_llama(llama, names=None):
    model = loading.load(llama, torch.float32, "cpu")
    names = list(weights_of(llama, SCHEME)) if names is None else names(list(weights_of(llama, SCHEME)))
    return model, calibration.calibrate(model, torch.randint(10, 1000, (4, 8)), names, gptq.calibrate, SCHEME, 2)


@pytest.mark.parametrize("left_out", ["layers.0.", "layers.1."])
def test_a_layer_that_ignore_names_passes_the_texts_on(left_out, llama):
    plain = weights_of(llama, SCHEME)
    model, found = calibrated_llama(llama, lambda names: [name for name in names if left_out not in name])
    for name, weight in plain.items():
        assert (left_out in name) == (name not in found)
        assert torch.equal(model.get_submodule(name).weight, weight.float()) == (left_out in name)


def test_a_linear_that_the_texts_do_not_reach_is_refused(llama, monkeypatch):
    stages = layer_inputs.stages
    monkeypatch.setattr(layer_inputs, "stages", lambda layer: stages(layer)[1:])
    with pytest.raises(InputError, match=r"self_attn\.k_proj: expected calibration texts that reach it, found none"):
        calibrated_llama(llama)


def test_a_linear_that_a_layer_uses_twice_is_refused():
    linear = torch.nn.Linear(8, 8)
    layer = calibration.Layer(torch.nn.Sequential(linear, linear), {"up": linear})
    with pytest.raises(
        InputError, match="up: expected a linear that its layer uses once, found one that it uses more often"
    ):
        calibration.undisturbed_output(layer, [((normal(2, 4, 8),), {})])


def test_a_linear_that_only_some_texts_reach_is_refused():
    class Expert(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.expert = torch.nn.Linear(8, 8)

        def forward(self, x):
            return self.expert(x) if x.sum() > 0 else x

    module = Expert()
    layer = calibration.Layer(module, {"expert": module.expert})
    with pytest.raises(InputError, match="expert: expected a linear that all calibration texts reach"):
        calibration.undisturbed_output(layer, [((torch.ones(1, 4, 8),), {}), ((-torch.ones(1, 4, 8),), {})])


def refusal(checkpoint, tmp_path, *options, program="quantize"):
    result = run_script(program, "--checkpoint", checkpoint, *options, "--output", tmp_path / "out")
    assert result.returncode == 1
    assert not (tmp_path / "out").exists()
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("method", "spoil", "expected"),
    [
        (
            "gptq",
            lambda folder: (folder / record.CALIBRATION).unlink(),
            "expected a checkpoint calibrated by gptq, found no calibration.json",
        ),
        ("awq", lambda folder: None, "calibration.json: method: expected awq, found gptq"),
        ("rtn", lambda folder: None, "expected weights that were not calibrated, found some calibrated by gptq"),
        (
            "gptq",
            lambda folder: (folder / grids.FILE).unlink(),
            "q_proj: expected a grid, found no grid; re-run calibrate",
        ),
    ],
)
def test_a_checkpoint_is_exported_by_the_method_that_calibrated_it(method, spoil, expected, folders, tmp_path):
    folder = shutil.copytree(folders["gptq"], tmp_path / "model")
    spoil(folder)
    assert expected in refusal(folder, tmp_path, *quantize_options(SCHEME), "--method", method)


def test_weights_that_were_trained_without_int4_and_then_calibrated_are_not_just_rounded(folders, tmp_path):
    folder = shutil.copytree(folders["gptq"], tmp_path / "model")
    files.write_json(folder / record.RECORD, {"scheme": None, "grids": None})
    line = refusal(folder, tmp_path, *quantize_options(SCHEME, method="rtn"))
    assert "expected weights that were not calibrated, found some calibrated by gptq" in line


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_weights_that_were_calibrated_are_not_calibrated_again(method, folders, general_text, tmp_path):
    options = ["--scheme", json.dumps(SCHEME.words), "--method", method, "--texts", general_text, *BATCH]
    line = refusal(folders["gptq"], tmp_path, *options, program="calibrate")
    assert "expected original weights, found some that were calibrated or trained for int4" in line


def test_a_checkpoint_is_exported_in_the_scheme_that_it_was_calibrated_for(folders, tmp_path):
    line = refusal(folders["gptq"], tmp_path, *quantize_options(schemes.int4(32)), "--method", "gptq")
    assert "calibration.json: scheme: expected" in line


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["--length", 4096], "calibration.length: expected at most 2048, the model's context, found 4096"),
        (["--method", "rtn"], "--method: expected one that calibrates on texts, found rtn"),
        (["--samples", 4000], "expected 4000 windows of 32 tokens to calibrate on"),
    ],
)
def test_what_cannot_be_calibrated_is_a_line(changed, expected, llama, general_text, tmp_path):
    options = ["--scheme", json.dumps(SCHEME.words), "--method", "gptq", "--texts", general_text, *BATCH, *changed]
    assert expected in refusal(llama, tmp_path, *options, program="calibrate")
