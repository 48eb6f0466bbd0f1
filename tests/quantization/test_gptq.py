"""Compare GPTQ of one weight with its definition, with rounding to nearest and with llm-compressor."""

import pytest
import torch

from by_gptq import compensate
from int4_qat.quantization import clipping, compensation, int4, schemes
from int4_qat.quantization.layer_inputs import Inputs
from programs import SCHEMES
from weights import normal

ROWS, COLUMNS, TOKENS = 24, 256, 2000
each_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


@pytest.fixture(scope="module")
def moments():
    """Return the second moments of correlated inputs, some of which are ten times as large as others."""
    inputs = normal(TOKENS, COLUMNS, seed=1) @ (torch.eye(COLUMNS) + 0.1 * normal(COLUMNS, COLUMNS, seed=2))
    inputs *= torch.logspace(-0.5, 0.5, COLUMNS)[torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(3))]
    return inputs.T @ inputs / TOKENS


@pytest.fixture(scope="module")
def weight():
    return 0.02 * normal(ROWS, COLUMNS)


def error(weight, deployed, moments):
    """Return the mean squared error of the linear's outputs, in fp64."""
    difference = (deployed - weight).double()
    return (difference @ moments.double() * difference).sum().item()


def by_definition(weight, moments, scheme):
    """Return the values of GPTQ in fp64 by its definition, which inverts the rest of H for each column.

    The remaining columns take over -e [H⁻¹]_j / [H⁻¹]_jj (Frantar and Alistarh 2022, equation 3).
    """
    hessian = moments.double() + compensation.DAMPING * moments.double().diagonal().mean() * torch.eye(COLUMNS)
    order = compensation.order_of(moments.diagonal(), scheme.group_size).tolist()
    weight, deployed = weight.double().clone(), torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    size = scheme.group_size
    for turn, column in enumerate(order):
        left = order[turn:]
        inverse = torch.linalg.inv(hessian[left][:, left])
        if turn % size == 0:
            # A column's error costs what no later column can compensate for: e² / [H⁻¹]_jj, with H of the rest.
            costs = [1 / torch.linalg.inv(hessian[order[at:]][:, order[at:]])[0, 0] for at in range(turn, turn + size)]
            grid = clipping.best_grid(weight[:, left[:size]].float(), scheme, torch.stack(costs).float())
            scale, zero_point = (part.flatten().double() for part in grid)
        codes = ((weight[:, column].bfloat16().double() - zero_point) / scale).round().clamp(-8, 7)
        deployed[:, column] = codes * scale + zero_point
        weight[:, left] -= (weight[:, column] - deployed[:, column]).outer(inverse[0] / inverse[0, 0])
    return deployed


@each_scheme
def test_the_values_are_those_of_the_definition(weight, moments, scheme):
    compensated, grid = compensate(weight, moments, scheme)
    deployed = int4.fake_quantize(compensated, scheme, torch.float32, grid)
    expected = by_definition(weight, moments, scheme)
    # Where two values are almost equally near, fp32 rounding decides, and the later columns change as well.
    assert ((deployed - expected).abs() < 1e-5).float().mean() > 0.97
    assert error(weight, deployed, moments) == pytest.approx(error(weight, expected, moments), rel=0.01)


@each_scheme
def test_the_outputs_are_nearer_than_those_of_rounding(weight, moments, scheme):
    compensated, grid = compensate(weight, moments, scheme)
    deployed = int4.fake_quantize(compensated, scheme, torch.float32, grid)
    rounded = int4.fake_quantize(weight, scheme)
    assert error(weight, deployed, moments) < 0.7 * error(weight, rounded, moments)


def test_each_column_turns_up_once_and_groups_stay_together():
    sizes = torch.tensor([1.0, 3, 9, 2, 4, 8, 0, 0])
    assert compensation.order_of(sizes, 4).tolist() == [2, 1, 3, 0, 5, 4, 6, 7]


@each_scheme
def test_an_input_that_is_always_zero_changes_nothing(weight, moments, scheme):
    silent = moments.clone()
    silent[5], silent[:, 5] = 0, 0
    compensated, _ = compensate(weight, silent, scheme)
    assert torch.equal(compensated[:, 5], weight[:, 5].bfloat16())
    assert compensated.isfinite().all()


@each_scheme
def test_without_any_input_nothing_is_compensated(weight, scheme):
    compensated, grid = compensate(weight, torch.zeros(COLUMNS, COLUMNS), scheme)
    assert torch.equal(compensated, weight.bfloat16())
    cut = clipping.best_grid(weight, scheme, torch.ones(COLUMNS))
    assert all(torch.equal(*pair) for pair in zip(grid, cut, strict=True))


@each_scheme
def test_one_token_is_enough_to_go_by(weight, scheme):
    token = normal(COLUMNS, seed=4)
    singular = token.outer(token)
    compensated, grid = compensate(weight, singular, scheme)
    deployed = int4.fake_quantize(compensated, scheme, torch.float32, grid)
    assert error(weight, deployed, singular) < 0.1 * error(weight, int4.fake_quantize(weight, scheme), singular)


@pytest.mark.parametrize("group_size", schemes.GROUP_SIZES)
def test_every_group_size_is_taken(weight, moments, group_size):
    scheme = schemes.int4(group_size, schemes.INTEGER)
    _, grid = compensate(weight, moments, scheme)
    assert grid.scale.shape == (COLUMNS // group_size, ROWS)


@pytest.mark.parametrize("kind", ["integer", "symmetric"])
def test_the_values_are_those_of_llm_compressor_on_the_same_grid(kind, weight):
    """This needs llmcompressor 0.14.0.1 and compressed-tensors 0.19.0, installed without the packages that they pin."""
    theirs = pytest.importorskip("llmcompressor.modifiers.gptq.gptq_quantize")
    from compressed_tensors.quantization import QuantizationArgs

    scheme = SCHEMES[kind]
    inputs = normal(TOKENS, COLUMNS, seed=1) @ (torch.eye(COLUMNS) + 0.02 * normal(COLUMNS, COLUMNS, seed=2))
    # The largest inputs come first, which is our order of rounding; llm-compressor does not reorder groups.
    inputs = inputs / inputs.square().mean(0).sqrt() * torch.logspace(0.5, -0.5, COLUMNS)
    moments = inputs.T @ inputs / TOKENS
    compensated, grid = compensate(weight, moments, scheme)
    scale, zero_point = (part.T.float() for part in grid)
    arguments = QuantizationArgs(
        num_bits=4, type="int", symmetric=kind == "symmetric", strategy="group", group_size=scheme.group_size
    )
    whole = (-zero_point / scale).round().to(torch.int8)  # llm-compressor's values are (code - zero point) * scale
    options = {"global_scale": None, "quant_args": arguments, "percdamp": compensation.DAMPING}
    expected, *_ = theirs.quantize_weight(
        weight[None].clone(), moments[None].clone(), scale=scale[None], zero_point=whole[None], **options
    )
    deployed = int4.fake_quantize(compensated, scheme, torch.float32, grid)
    assert error(weight, deployed, moments) == pytest.approx(error(weight, expected[0], moments), rel=0.02)
    assert ((deployed - expected[0]).abs() < 1e-5).float().mean() > 0.7  # ours rounds weights stored in bfloat16


@each_scheme
def test_linears_with_one_input_are_rounded_each_as_alone(moments, scheme):
    weights = {"q": 0.02 * normal(16, COLUMNS, seed=5), "k": 0.02 * normal(8, COLUMNS, seed=6)}
    linears = {}
    for name, values in weights.items():
        linears[name] = torch.nn.Linear(COLUMNS, len(values), bias=False)
        linears[name].weight.data = values
    drift = 0.1 * normal(COLUMNS, COLUMNS, seed=7)
    together = compensation.rounded_together(Inputs(linears, moments, moments.diagonal(), drift), scheme)
    for name in weights:
        alone = compensation.rounded_together(Inputs({name: linears[name]}, moments, moments.diagonal(), drift), scheme)
        (found, grid), (expected, expected_grid) = together[name], alone[name]
        assert (found - expected).abs().max() < 1e-2 * expected.abs().max()
        assert ((found - expected).abs() < 1e-6).float().mean() > 0.95
        assert grid.scale.shape == expected_grid.scale.shape


def test_the_weights_steer_to_the_outputs_of_the_bf16_model(weight, monkeypatch):
    """Without damping, and going all the way, they solve a least-squares problem: min over V of |W x' - V x|²."""
    monkeypatch.setattr(compensation, "DAMPING", 0.0)
    monkeypatch.setattr(compensation, "FOLLOWED", 1.0)
    given = normal(TOKENS, COLUMNS, seed=1)
    bf16 = (
        given
        + 0.3 * normal(TOKENS, COLUMNS, seed=8) @ torch.diag(torch.linspace(0, 1, COLUMNS))
        + 0.2 * given.roll(1, 1)
    )
    moments, drift = given.T @ given / TOKENS, (bf16 - given).T @ given / TOKENS
    found = compensation.steered(weight, drift, compensation.inverse_of(moments))
    expected = torch.linalg.lstsq(given.double(), bf16.double() @ weight.double().T).solution.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-6)
    assert (found - weight).norm() > 0.1 * weight.norm()
