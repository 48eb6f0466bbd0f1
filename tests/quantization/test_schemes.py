"""Compare the grids that torchao lacks, integer zero points and symmetric, with their definitions in fp64."""

import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from int4_qat.quantization import int4, schemes
from programs import environment
from weights import normal

KINDS = {"integer": schemes.INTEGER, "symmetric": None}
ROWS, COLUMNS = 48, 512
SIZES = 10 ** torch.linspace(-6, 4, ROWS).unsqueeze(1)
# Weights with groups of many kinds.
WEIGHTS = {
    "normal": normal(ROWS, COLUMNS),
    "bf16": normal(ROWS, COLUMNS, seed=1).bfloat16(),
    "tiny": 1e-6 * normal(ROWS, COLUMNS, seed=2),
    "small": 1e-3 * normal(ROWS, COLUMNS, seed=3),
    "large": 1e4 * normal(ROWS, COLUMNS, seed=4),
    "of all sizes": SIZES * normal(ROWS, COLUMNS, seed=5),
    "positive": normal(ROWS, COLUMNS, seed=6).abs() + 0.1,
    "negative": -normal(ROWS, COLUMNS, seed=7).abs() - 0.1,
    "shifted": normal(ROWS, COLUMNS, seed=8) + torch.linspace(-4, 4, ROWS).unsqueeze(1),
    "outliers": normal(ROWS, COLUMNS, seed=9) ** 5,
    "constant": torch.full((ROWS, COLUMNS), 0.3),
    "constant, negative": torch.full((ROWS, COLUMNS), -1e4),
    "zero": torch.zeros(ROWS, COLUMNS),
}
each_weight = pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
each_kind = pytest.mark.parametrize("zero_point", KINDS.values(), ids=KINDS)
each_group_size = pytest.mark.parametrize("group_size", schemes.GROUP_SIZES)


def in_groups(weight, group_size):
    """Return a weight in groups, as fp64 (rows, groups, group_size)."""
    return weight.double().view(len(weight), -1, group_size)


def of_groups(part):
    """Return scales or zero points as fp64 (rows, groups)."""
    return part.t().double()


def exact_bits(factor):
    """Return how many significant bits a number may have if its product with a whole factor must fit in eight."""
    while factor and factor % 2 == 0:
        factor //= 2
    return max(bits for bits in range(1, 9) if (2**bits - 1) * factor < 2**8)


@each_group_size
@each_weight
def test_an_integer_zero_point_is_a_whole_number_of_scales(weight, group_size):
    quantized = int4.quantize(weight, schemes.int4(group_size, schemes.INTEGER))
    assert quantized.scale.dtype == quantized.zero_point.dtype == torch.bfloat16
    scale, zero_point = of_groups(quantized.scale), of_groups(quantized.zero_point)
    k = 8 - zero_point / scale
    assert torch.equal(k, k.round())
    assert torch.equal(zero_point, (8 - k) * scale)
    assert (k.clamp(0, 15) == k).all()


@each_group_size
@each_weight
def test_an_integer_grid_is_the_range_with_zero_in_it(weight, group_size):
    """The lowest value is k scales below 0; the scale is a 15th of the range, in the bits that k leaves for it."""
    groups = in_groups(weight, group_size)
    quantized = int4.quantize(weight, schemes.int4(group_size, schemes.INTEGER))
    scale, zero_point = of_groups(quantized.scale), of_groups(quantized.zero_point)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    exact = (high - low).clamp(min=1e-6) / 15
    k = 8 - zero_point / scale
    assert (k - (-low / exact)).abs().max() <= 0.5 + 1e-5
    bits = torch.tensor([exact_bits(abs(8 - int(each))) for each in k.flatten()]).view_as(k)
    assert not (torch.frexp(scale).mantissa * 2**bits).frac().any()
    assert ((scale - exact).abs() <= torch.ldexp(0.5 ** (bits + 1), torch.frexp(exact).exponent) * (1 + 1e-6)).all()


@each_group_size
@each_weight
def test_a_symmetric_grid_is_the_largest_weight_by_seven_and_a_half(weight, group_size):
    groups = in_groups(weight, group_size)
    quantized = int4.quantize(weight, schemes.int4(group_size, None))
    largest = groups.abs().amax(-1).clamp(min=1e-6).float()
    assert torch.equal(quantized.scale, (largest / 7.5).bfloat16().t())
    assert not quantized.zero_point.any()
    assert quantized.zero_point.dtype == torch.bfloat16


@each_kind
@each_group_size
@each_weight
def test_a_weight_is_the_nearest_of_sixteen_values(weight, group_size, zero_point):
    """The values are (code - zero point) * scale as in compressed-tensors, with codes and zero points in -8 ... 7."""
    quantized = int4.quantize(weight, schemes.int4(group_size, zero_point))
    scale, groups = of_groups(quantized.scale).unsqueeze(-1), in_groups(weight, group_size)
    whole = -of_groups(quantized.zero_point).unsqueeze(-1) / scale
    assert torch.equal(whole, whole.round().clamp(-8, 7))
    expected = (in_groups(quantized.codes, group_size) - whole) * scale
    assert torch.equal(int4.dequantize(quantized).double(), expected.view_as(weight))
    values = (torch.arange(-8, 8, dtype=torch.float64) - whole).unsqueeze(-2) * scale.unsqueeze(-1)
    distance = (groups.unsqueeze(-1) - values).abs().amin(-1)
    assert ((groups - expected).abs() <= distance + 1e-5 * scale).all()


@each_kind
def test_codes_are_minus_eight_to_seven(zero_point):
    codes = int4.quantize(WEIGHTS["normal"], schemes.int4(32, zero_point)).codes
    assert codes.dtype == torch.int8
    assert codes.unique().tolist() == list(range(-8, 8))


@each_kind
@each_group_size
@each_weight
def test_the_own_grid_given_again_changes_nothing(weight, group_size, zero_point):
    scheme = schemes.int4(group_size, zero_point)
    quantized = int4.quantize(weight, scheme)
    again = int4.quantize(int4.dequantize(quantized), scheme, quantized.grid)
    assert all(torch.equal(*pair) for pair in zip(again, quantized, strict=True))
    given = int4.fake_quantize(weight, scheme, torch.float32, quantized.grid)
    assert torch.equal(given, int4.fake_quantize(weight, scheme, torch.float32))


@pytest.mark.parametrize("group_size", schemes.GROUP_SIZES)
def test_a_float_grid_that_is_given_finds_the_same_codes_of_what_they_stand_for(group_size):
    scheme = schemes.int4(group_size)
    quantized = int4.quantize(WEIGHTS["normal"], scheme)
    again = int4.quantize(int4.dequantize(quantized), scheme, quantized.grid)
    assert all(torch.equal(*pair) for pair in zip(again, quantized, strict=True))


@each_kind
def test_a_given_grid_of_other_values_is_used(zero_point):
    """The given grid is twice as wide as the weight's own."""
    scheme = schemes.int4(64, zero_point)
    weight, (scale, zero) = WEIGHTS["normal"], int4.quantize(WEIGHTS["normal"], scheme).grid
    quantized = int4.quantize(weight, scheme, int4.Grid(2 * scale, 2 * zero))
    assert torch.equal(quantized.scale, 2 * scale)
    doubled = int4.quantize(2 * weight, scheme, int4.Grid(2 * scale, 2 * zero))
    assert torch.equal(doubled.codes, int4.quantize(weight, scheme, int4.Grid(scale, zero)).codes)
    assert quantized.codes.float().var() < doubled.codes.float().var() / 3


@each_kind
def test_a_constant_group_keeps_its_value(zero_point):
    """It keeps its value to half a step of a grid that spans from 0, or from the value's negative, to the value."""
    for constant in (0.3, -0.3, 1e-5, -1e4):
        weight = torch.full((2, 64), constant)
        found = int4.fake_quantize(weight, schemes.int4(64, zero_point))
        assert torch.equal(found, found[0, 0].expand_as(found))
        assert abs(found[0, 0].item() - constant) <= abs(constant) * (1 / 15 + 1 / 32)
    assert not int4.fake_quantize(torch.zeros(2, 64), schemes.int4(64, zero_point)).any()


WITH_COMPRESSED_TENSORS = """
import sys
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from safetensors.torch import load_file, save_file

found = {}
for name, symmetric in (("integer", False), ("symmetric", True)):
    parts = {key.removeprefix(name + " "): part for key, part in load_file(sys.argv[1]).items() if key.startswith(name)}
    args = QuantizationArgs(num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=64)
    grid = dict(scale=parts["scale"], zero_point=parts["zero_point"], args=args)
    found[name + " codes"] = quantize(parts["weight"], dtype=torch.int8, **grid)
    found[name + " values"] = dequantize(parts["codes"], dtype=torch.float32, **grid)
save_file(found, sys.argv[2])
"""


@pytest.mark.slow
def test_compressed_tensors_computes_the_same(tmp_path):
    """The package itself computes the same on the same scales and whole zero points."""
    variables = environment("vllm")
    given, quantized = {}, {}
    weight = WEIGHTS["of all sizes"]
    for name, zero_point in KINDS.items():
        quantized[name] = int4.quantize(weight, schemes.int4(64, zero_point))
        scale = quantized[name].scale.t().float().contiguous()
        whole = (-quantized[name].zero_point.t().float() / scale).to(torch.int8).contiguous()
        parts = {"weight": weight.clone(), "codes": quantized[name].codes, "scale": scale, "zero_point": whole}
        given |= {f"{name} {key}": part for key, part in parts.items()}
    save_file(given, tmp_path / "given.safetensors")
    command = [shutil.which("python", path=variables["PATH"]), "-c", WITH_COMPRESSED_TENSORS]
    paths = [tmp_path / "given.safetensors", tmp_path / "found.safetensors"]
    result = subprocess.run([*command, *paths], env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    found = load_file(tmp_path / "found.safetensors")
    for name, ours in quantized.items():
        assert torch.equal(found[f"{name} values"], int4.dequantize(ours))
        assert torch.equal(found[f"{name} codes"], ours.codes)
