"""Test trained grids: where they start, their gradients, and what is stored and deployed."""

import shutil
import signal

import pytest
import torch

import calibrated
import finetune
import merge
from int4_qat.checkpoint import blocks, loading, weight_files
from int4_qat.config.recipe import Recipe
from int4_qat.quantization import grids, int4
from int4_qat.system import files
from int4_qat.system.errors import InputError
from int4_qat.training import callbacks, learned_grid, qat
from int4_qat.training.backends import transformers
from programs import (
    INT4,
    RECIPE,
    SCHEMES,
    finetune_options,
    quantize_options,
    run_in_process,
    run_in_turn,
    run_script,
    seen,
)
from weights import normal

each_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
LAYER = "model.language_model.layers.0.mlp.down_proj"
LEARNED = {"qat_target": "merged", "grid_learning_rate": 0.05}


def model_of(folder, scheme, **changes):
    return transformers.add_adapters(folder, Recipe(**RECIPE | seen(scheme) | LEARNED | changes), "cpu")


def seeing(folder):
    """Return the bytes of the vision tensors, by name."""
    tensors = weight_files.stored_tensors(folder).items()
    parts = {key: tensor for key, tensor in tensors if "vision" in key or "projector" in key}
    return {key: tensor.read().contiguous().view(torch.uint8).numpy().tobytes() for key, tensor in parts.items()}


def moved(layer, seed=0):
    """Move a layer's adapter and grid away from their starting values."""
    torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.05, generator=torch.Generator().manual_seed(seed))
    for parameter in layer.grid.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(seed + 1))


@each_scheme
@pytest.mark.parametrize("start", ["rounded", "calibrated"])
def test_they_start_where_training_does(untrained, tmp_path, scheme, start):
    folder = untrained / "model"
    if start == "calibrated":
        folder = calibrated.write(folder, tmp_path / "model", scheme)
    given = grids.read(folder)
    for name, layer in qat.lora_linears(model_of(folder, scheme)).items():
        weight = layer.base_layer.weight
        expected = given[name] if given else int4.quantize(weight, scheme).grid
        assert all(torch.equal(*pair) for pair in zip(layer.grid.stored()[:2], expected, strict=True))
        seen_in_training = layer(torch.eye(layer.in_features)).T
        assert torch.equal(seen_in_training, calibrated.nearest(weight, expected).float())


@each_scheme
def test_what_is_stored_is_in_the_scheme(scheme):
    """Scales have the significant bits that the scheme allows.

    If the scheme's zero points are integers, they are whole multiples of the scale; a symmetric scheme has none.
    """
    grid = calibrated.grid_near(normal(32, 256), scheme)
    learned = learned_grid.LearnedGrid(grid, scheme)
    torch.nn.init.normal_(learned.log_scale, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(learned.shift.data, std=3, generator=torch.Generator().manual_seed(1))
    scale, zero_point, start = learned.stored()
    assert start is grid
    assert scale.dtype == zero_point.dtype == torch.bfloat16
    whole = zero_point.float() / scale.float()
    bits = torch.full_like(whole, 8)
    if scheme.zero_point == "integer":
        bits = torch.tensor([8, 8, 8, 6, 8, 5, 6, 5, 8])[whole.abs().int()]
    mantissa = torch.frexp(scale.float()).mantissa
    assert torch.equal(mantissa * 2**bits, (mantissa * 2**bits).round())
    if scheme.zero_point == "integer":
        assert torch.equal(whole, whole.round())
        assert (whole.min(), whole.max()) == (-7, 8)
    elif scheme.zero_point is None:
        assert not zero_point.any()
    wanted = learned.scale * learned.log_scale.exp()
    assert ((scale.float() - wanted).abs() <= wanted * 0.5**bits).all()


@each_scheme
def test_a_scale_that_moves_changes_no_code(untrained, scheme):
    layer = qat.lora_linears(model_of(untrained / "model", scheme))[LAYER]
    weight, start = layer.base_layer.weight, layer.grid.start
    moved(layer)
    found, before = (int4.quantize(weight, scheme, grid) for grid in (layer.grid.stored(), start))
    assert torch.equal(found.codes, before.codes)
    assert not torch.equal(found.scale, before.scale)


@each_scheme
def test_gradients_are_autograds(untrained, scheme):
    """They equal autograd's gradients of the plain formula, with only the roundings passed straight through."""
    layer = qat.lora_linears(model_of(untrained / "model", scheme))[LAYER]
    moved(layer)
    grid, a, b = layer.grid, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = normal(5, layer.in_features).requires_grad_()
    scale, offset = grid.scale * grid.log_scale.exp(), grid.offset + 15 * grid.shift
    stored = grid.stored()
    scale_seen = scale + (stored.scale.float() - scale).detach()
    zero_seen = offset * scale + (stored.zero_point.float() - offset * scale).detach()
    size = scheme.group_size
    merged = blocks.merge(layer.base_layer.weight, a, b, layer.scaling["default"])
    old_scales, old_zeros, scales, zeros = (
        part.float().t().repeat_interleave(size, dim=1) for part in (*grid.start, scale_seen, zero_seen)
    )
    steps = (merged - old_zeros) / old_scales
    assert ((steps.round() < -8) | (steps.round() > 7)).any()
    deployed = steps.detach().round().clamp(-8, 7) * scales + zeros
    trained = [part for part in (grid.log_scale, grid.shift) if part.requires_grad]
    expected = torch.autograd.grad(torch.sin(x @ deployed.T).sum(), [x, *trained])
    found = torch.autograd.grad(torch.sin(layer(x)).sum(), [x, *trained])
    torch.testing.assert_close(layer(x), x @ deployed.T)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.skipif(" " in torch.__file__, reason="torch.compile links nothing on a CPU from a path with a space in it")
@each_scheme
def test_the_compiled_kernels_store_the_same_grid(scheme):
    grid = learned_grid.LearnedGrid(calibrated.grid_near(normal(32, 256), scheme), scheme)
    *moves, of_scale, of_zero_point = (normal(*grid.scale.shape, seed=seed) for seed in range(4))
    values = *moves, grid.scale, grid.offset
    found = learned_grid.compiled(learned_grid.seen)(*values, scheme)
    assert all(torch.equal(*pair) for pair in zip(found, learned_grid.seen(*values, scheme), strict=True))
    upstream = of_scale, of_zero_point
    found = learned_grid.compiled(learned_grid.gradients)(*values, *upstream)
    for ours, eager in zip(found, learned_grid.gradients(*values, *upstream), strict=True):
        torch.testing.assert_close(ours, eager)


def test_ignored_linears_have_no_grid(untrained):
    model = model_of(untrained / "model", INT4, ignore=["up_proj"])
    learned = qat.learned_grids(model)
    assert learned.keys() == {name for name in qat.lora_linears(model) if not name.endswith("up_proj")}


def test_blocks_of_rows_have_the_gradients_of_the_whole(untrained, monkeypatch):
    layer = qat.lora_linears(model_of(untrained / "model", INT4))[LAYER]
    moved(layer)
    x, trained = normal(5, layer.in_features), [layer.grid.log_scale, layer.grid.shift]
    whole = torch.autograd.grad(torch.sin(layer(x)).sum(), trained)
    monkeypatch.setattr(blocks, "CACHED_WEIGHTS", layer.in_features * 7)
    for ours, theirs in zip(torch.autograd.grad(torch.sin(layer(x)).sum(), trained), whole, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("start", ["rounded", "calibrated"])
@each_scheme
def test_what_training_saw_is_what_is_deployed(untrained, texts, tmp_path, monkeypatch, scheme, start):
    base, adapter = untrained / "model", tmp_path / "adapter"
    folder = calibrated.write(base, tmp_path / "model", scheme) if start == "calibrated" else base
    changes = seen(scheme) | LEARNED | {"max_steps": 3}
    options = finetune_options(untrained, texts, tmp_path, **changes)
    options[options.index("--model") + 1] = folder
    merged, exported, parity = tmp_path / "bf16", tmp_path / "int4", tmp_path / "parity.json"
    model = ["--model", folder, "--adapter", adapter]
    run_in_turn(
        monkeypatch,
        ("finetune", *options),
        ("merge", *model, "--output", merged),
        ("quantize", "--checkpoint", merged, "--output", exported, *quantize_options(scheme)),
        ("check_parity", *model, "--checkpoint", exported, "--texts", texts, "--output", parity),
    )
    report = files.read_json(parity)
    assert report["weights_that_differ"] == 0
    assert report["relative_logit_difference"] == 0
    assert seeing(exported) == seeing(base) != {}
    learned, started = grids.read(adapter), model_of(folder, scheme)
    deployed = loading.load(exported, torch.float32, "cpu")
    for name, layer in qat.lora_linears(started).items():
        weight = deployed.get_submodule(name).weight
        assert torch.equal(weight.scale, learned[name].scale)
        assert torch.equal(weight.zero_point, learned[name].zero_point)
        assert not torch.equal(learned[name].scale, layer.grid.stored().scale)


def test_stopped_and_resumed_gives_the_same_grids(untrained, texts, tmp_path, monkeypatch):
    """The checkpoint that SIGTERM leaves also holds the grids, and the optimizer's state for them."""
    changes = seen() | LEARNED
    whole, stopped = (finetune_options(untrained, texts, tmp_path / name, **changes) for name in ("whole", "stopped"))
    assert run_script("finetune", *whole).returncode == 0

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 5:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.StepTable, "on_step_begin", stop)
        with pytest.raises(Exception, match="stopped by SIGTERM after step 6"):
            run_in_process(finetune, patch, *stopped)
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-6" / learned_grid.FILE).exists()
    assert run_script("finetune", *stopped).returncode == 0
    for file in (grids.FILE, "adapter_model.safetensors"):
        first, second = ((tmp_path / name / "adapter" / file).read_bytes() for name in ("whole", "stopped"))
        assert first == second


@pytest.mark.parametrize("start", ["rounded", "calibrated"])
def test_an_adapter_whose_grids_are_lost_is_not_merged(untrained, texts, tmp_path, monkeypatch, start):
    """Otherwise the grids of a calibrated start would be taken for the learned ones."""
    folder = untrained / "model"
    if start == "calibrated":
        folder = calibrated.write(folder, tmp_path / "model", INT4)
    options = finetune_options(untrained, texts, tmp_path, **seen() | LEARNED)
    options[options.index("--model") + 1] = folder
    run_in_process(finetune, monkeypatch, *options)
    (tmp_path / "adapter" / grids.FILE).unlink()
    paths = ["--model", folder, "--adapter", tmp_path / "adapter", "--output", tmp_path / "bf16"]
    with pytest.raises(InputError, match="expected the grids that the training learned, found none"):
        run_in_process(merge, monkeypatch, *paths)
    assert not (tmp_path / "bf16").exists()
