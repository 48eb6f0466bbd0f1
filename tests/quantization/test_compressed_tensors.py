"""Test compressed-tensors' layout: packing, what its own code and vLLM read, and which linears are left out."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import calibrated
import convert
import quantize
from int4_qat.checkpoint import architecture, weight_files, weight_writer
from int4_qat.engines import inference, vllm_process
from int4_qat.quantization import int4, packed_weight, schemes
from int4_qat.quantization.formats import compressed_tensors, torchao_plain
from int4_qat.quantization.int4 import Int4Weight
from int4_qat.system.errors import InputError
from programs import SCHEMES, environment, quantize_options, run_in_process
from weights import normal

HELD = {name: scheme for name, scheme in SCHEMES.items() if name != "float"}
each_held = pytest.mark.parametrize("scheme", HELD.values(), ids=HELD)
FORMATS = {"compressed-tensors": compressed_tensors, "torchao-plain": torchao_plain}


def export(checkpoint, scheme, output, monkeypatch, word="compressed-tensors", ignore=()):
    options = quantize_options(scheme, ignore)
    options[options.index("--format") + 1] = word
    run_in_process(quantize, monkeypatch, "--checkpoint", checkpoint, *options, "--output", output)
    return output


def nibbles(words):
    """Return the values in packed words by the layout's description: element i of a row is in bits 4 (i mod 8)."""
    words = words.numpy().astype(np.uint32)
    columns = [(words >> np.uint32(4 * place)) & np.uint32(15) for place in range(8)]
    return torch.from_numpy(np.stack(columns, axis=-1).reshape(len(words), -1).astype(np.int64)) - 8


@pytest.mark.parametrize("rows", [1, 8, 13])
@pytest.mark.parametrize("columns", [8, 20, 64])
def test_every_value_survives_packing(rows, columns):
    values = (torch.arange(rows * columns) % 16 - 8).view(rows, columns).to(torch.int8)
    words = packed_weight.pack(values)
    assert words.dtype == torch.int32
    assert words.shape == (rows, -(-columns // 8))
    assert torch.equal(nibbles(words)[:, :columns], values.long())
    assert (nibbles(words)[:, columns:] == -8).all()
    assert torch.equal(packed_weight.unpack(words, columns), values)


def test_every_zero_point_survives_packing():
    steps = torch.arange(16)[:, None].expand(16, 5) - 7
    scale = normal(16, 5).abs().to(torch.bfloat16)
    scale = int4.nearest_grid(scale.float(), steps.float(), schemes.int4(32, schemes.INTEGER)).scale
    zero_point = (steps * scale.float()).to(torch.bfloat16)
    words = packed_weight.pack_zero_points(int4.Grid(scale, zero_point))
    assert words.shape == (1, 16)
    assert torch.equal(nibbles(words.t()).t()[:5], -steps.t())
    assert torch.equal(packed_weight.unpack_zero_points(words, scale).zero_point, zero_point)


@pytest.mark.parametrize("steps", [-8.0, 0.5, 9.0])
def test_a_zero_point_that_is_no_step_is_refused(steps):
    scale = torch.ones(2, 3, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="-7 to 8 whole steps"):
        packed_weight.pack_zero_points(int4.Grid(scale, steps * scale))


@pytest.mark.parametrize("rows", [16, 13])
@each_held
def test_both_formats_hold_the_same_weight_and_give_it_back(scheme, rows, tmp_path):
    """This holds for own, given and learned grids; converting to the other format and back gives the same bytes."""
    weight = normal(rows, 256).to(torch.bfloat16)
    start = calibrated.grid_near(weight, scheme)
    moved = int4.nearest_grid(1.1 * start.scale.float(), start.zero_point.float() / start.scale.float(), scheme)
    for given in (None, start, int4.MovedGrid(*moved, start)):
        wanted, contents = int4.quantize(weight, scheme, given), {}
        for turn, word in enumerate(["torchao-plain", "compressed-tensors", "torchao-plain", "compressed-tensors"]):
            folder = tmp_path / f"{word}-{turn}"
            wanted = through(FORMATS[word], wanted, scheme, folder)
            contents.setdefault(word, []).append((folder / weight_files.WEIGHTS).read_bytes())
            dequantized = int4.dequantize(wanted)
            assert torch.equal(dequantized, int4.dequantize(int4.quantize(weight, scheme, given)))
        assert all(first == second for first, second in contents.values())


def through(layout, quantized: Int4Weight, scheme, folder) -> Int4Weight:
    """Write a weight in a format, in two blocks, and return the weight that is read back."""
    key, rows = "linear.weight", len(quantized.codes)
    plan = {key: torch.empty(quantized.codes.shape, device="meta")}
    tensors, metadata = layout.lay_out(plan, {key: key}, {key}, scheme)
    targets = weight_writer.create(folder, tensors, metadata)
    blocks = [slice(0, 5), slice(5, rows)]
    grid = quantized.grid
    layout.write(key, [(part, Int4Weight(quantized.codes[part], *grid.of_rows(part))) for part in blocks], targets)
    return layout.reader(key, targets)(slice(0, rows))


@each_held
def test_an_export_holds_what_torchaos_folder_holds(untrained, scheme, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_writer, "SHARD_SIZE", "300KB")
    folders = {word: export(untrained / "model", scheme, tmp_path / word, monkeypatch, word) for word in FORMATS}
    stored = {word: weight_files.stored_tensors(folder) for word, folder in folders.items()}
    assert len({tensor.path for tensor in stored["compressed-tensors"].values()}) > 1
    _, sources, names = architecture.open_checkpoint(untrained / "model")
    manifest = json.loads((folders["compressed-tensors"] / "manifest.json").read_text())
    in_int4 = {f"{layer['name']}.weight" for layer in manifest["layers"] if layer["quantized"]}
    assert len(in_int4) == 3 * 7
    for key, source in sources.items():
        if names[key] in in_int4:
            ours, theirs = (FORMATS[word].reader(key, stored[word])(slice(0, source.shape[0])) for word in FORMATS)
            assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
            assert key not in stored["compressed-tensors"]
        else:
            assert torch.equal(stored["compressed-tensors"][key].read(), source.read().to(torch.bfloat16))


@each_held
def test_a_folder_goes_from_one_format_to_the_other_and_back(untrained, scheme, tmp_path, monkeypatch):
    folders = {word: export(untrained / "model", scheme, tmp_path / word, monkeypatch, word) for word in FORMATS}
    before = folders["torchao-plain"]
    for word in ("compressed-tensors", "torchao-plain"):
        run_in_process(
            convert,
            monkeypatch,
            "--checkpoint",
            before,
            "--format",
            word,
            "--output",
            before := tmp_path / f"to {word}",
        )
        files = [path.relative_to(before) for path in sorted(before.rglob("*")) if path.suffix]
        assert {path.name for path in files} > {"model.safetensors", "config.json", "manifest.json"}
        for file in files:
            assert (before / file).read_bytes() == (folders[word] / file).read_bytes(), file


def test_a_conversion_replaces_nothing(tmp_path, monkeypatch):
    output = tmp_path / "mine"
    output.mkdir()
    (output / "thesis.tex").touch()
    options = ["--checkpoint", tmp_path, "--format", "torchao-plain", "--output", output]
    with pytest.raises(InputError) as caught:
        run_in_process(convert, monkeypatch, *options)
    assert str(caught.value) == f"{output}: expected a new or empty folder, found one with 'thesis.tex'"
    assert list(tmp_path.iterdir()) == [output]
    assert [path.name for path in output.iterdir()] == ["thesis.tex"]


EIGHT_BITS = {"type": "int", "num_bits": 8, "strategy": "group"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"quant_method": "awq"}, "quant_method: expected torchao or compressed-tensors, found 'awq'"),
        (
            {"quant_method": "compressed-tensors", "format": "int-quantized"},
            "format: expected pack-quantized, found 'int-quantized'",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": EIGHT_BITS}},
            },
            r"config_groups.group_0.weights: expected .*4, .*, found .*8, ",
        ),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            "config_groups: expected one group, found none",
        ),
    ],
)
def test_a_format_that_is_not_loaded_is_one_line(untrained, tmp_path, words, expected):
    folder = shutil.copytree(untrained / "model", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": words}))
    with pytest.raises(InputError, match=expected):
        inference.load_model(folder, torch.float32, "cpu")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"symmetric": True}, "expected the parts .*, found .*weight_zero_point"),
        ({"group_size": 32}, r"expected the parts .*'weight_scale': .*, found .*'weight_scale'"),
    ],
)
def test_parts_that_are_not_those_of_the_config_are_refused(untrained, tmp_path, monkeypatch, change, expected):
    folder = export(untrained / "model", HELD["integer"], tmp_path / "int4", monkeypatch)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=expected):
        inference.load_model(folder, torch.float32, "cpu")


@pytest.mark.parametrize("scheme", HELD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_size", ["300KB", "5GB"])
def test_the_loader_makes_the_same_model_of_both_folders(untrained, tmp_path, monkeypatch, scheme, dtype, shard_size):
    monkeypatch.setattr(weight_writer, "SHARD_SIZE", shard_size)

    def loaded(word):
        folder = export(untrained / "model", HELD[scheme], tmp_path / word, monkeypatch, word)
        return inference.load_model(folder, dtype, "cpu")

    ours, theirs = loaded("compressed-tensors"), loaded("torchao-plain")
    states = ours.state_dict(), theirs.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype, name
        assert torch.equal(tensor, states[1][name]), name
    assert not hasattr(ours.config, "quantization_config") or ours.config.quantization_config is None


def test_the_manifest_counts_the_bytes_of_its_own_format(untrained, tmp_path, monkeypatch):
    folder = export(untrained / "model", HELD["integer"], tmp_path / "int4", monkeypatch)
    layers = json.loads((folder / "manifest.json").read_text())["layers"]
    stored = [tensor for name, tensor in weight_files.stored_tensors(folder).items() if ".weight_" in name]
    assert sum(layer["bytes_after"] for layer in layers if layer["quantized"]) == sum(part.nbytes for part in stored)


def test_a_float_zero_point_is_refused(untrained, tmp_path, monkeypatch):
    with pytest.raises(
        InputError, match="expected int4 in groups with zero_point integer, or symmetric, as compressed-tensors"
    ):
        export(untrained / "model", SCHEMES["float"], tmp_path / "int4", monkeypatch)


@pytest.mark.parametrize(
    "ignore", [[], ["down_proj"], ["layers.0.mlp.gate_proj", "layers.0.mlp.up_proj", "q_proj", "k_proj", "v_proj"]]
)
def test_what_is_left_out_is_known_by_old_and_new_names(untrained, ignore, tmp_path, monkeypatch):
    folder = export(untrained / "model", HELD["symmetric"], tmp_path / "int4", monkeypatch, ignore=ignore)
    config = json.loads((folder / "config.json").read_text())
    patterns = [entry.removeprefix("re:") for entry in config["quantization_config"]["ignore"]]
    layers = json.loads((folder / "manifest.json").read_text())["layers"]
    assert {True, False} == {layer["quantized"] for layer in layers}
    for layer in layers:
        new = layer["name"]
        old = new.replace("model.vision_tower.", "vision_tower.vision_model.").replace(
            "model.language_model.", "model."
        )
        in_vllm = old if "vision" in old else new.replace("model.language_model.", "language_model.model.")
        for name in (new, old, in_vllm, f"a.prefix.{new}"):
            assert any(re.match(pattern, name) for pattern in patterns) is not layer["quantized"], name
    assert len(patterns) < 8


# Write the bf16 weight that compressed_tensors' own code reads for each linear of a folder.
DEQUANTIZE = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig

folder, output = map(Path, sys.argv[1:])
words = json.loads((folder / "config.json").read_text())["quantization_config"]
(scheme,) = QuantizationConfig.model_validate(words).config_groups.values()
tensors, found = load_file(folder / "model.safetensors"), {}
compressor = BaseCompressor.load_from_registry(words["format"])
for name in [name for name in tensors if name.endswith(".weight_packed")]:
    module = name.removesuffix(".weight_packed")
    of_module = [part for part in tensors if part.startswith(f"{module}.weight_")]
    parts = {part.removeprefix(f"{module}."): tensors[part] for part in of_module}
    found[module] = compressor.decompress(parts, scheme)["weight"].contiguous()
save_file(found, output)
"""


@pytest.mark.slow
@each_held
def test_compressed_tensors_own_code_reads_the_same_weights(untrained, scheme, tmp_path, monkeypatch):
    variables = environment("vllm")
    folder = export(untrained / "model", scheme, tmp_path / "int4", monkeypatch)
    command = ["python", "-c", DEQUANTIZE, folder, tmp_path / "found.safetensors"]
    result = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    source, found = load_file(untrained / "model" / "model.safetensors"), load_file(tmp_path / "found.safetensors")
    assert len(found) == 3 * 7
    for module, weight in found.items():
        expected = int4.fake_quantize(source[f"{module}.weight"].to(torch.bfloat16), scheme)
        assert torch.equal(weight, expected), module


# Print which modules vLLM itself leaves out, by the names in its own model classes, which fuse some linears.
LEFT_OUT = """
import json, sys
from vllm.model_executor.layers.quantization.compressed_tensors.utils import should_ignore_layer

ignore, names = json.loads(sys.argv[1]), json.loads(sys.argv[2])
fused = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
print(json.dumps({name: should_ignore_layer(name, ignore, fused) for name in names}))
"""
FUSED = {"q_proj": "qkv_proj", "gate_proj": "gate_up_proj"}


@pytest.mark.slow
@pytest.mark.parametrize("ignore", [[], ["down_proj"], ["layers.0.self_attn", "layers.1.mlp"]])
def test_vllm_leaves_out_the_same_linears_where_it_makes_one_of_several(untrained, ignore, tmp_path, monkeypatch):
    variables = environment("vllm")
    folder = export(untrained / "model", HELD["symmetric"], tmp_path / "int4", monkeypatch, ignore=ignore)
    words = json.loads((folder / "config.json").read_text())["quantization_config"]["ignore"]
    kept = {}
    for layer in json.loads((folder / "manifest.json").read_text())["layers"]:
        parent, _, own = layer["name"].rpartition(".")
        if own in {"k_proj", "v_proj", "up_proj"}:
            continue
        name = f"{parent}.{FUSED.get(own, own)}"
        name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
        kept[name.replace("model.language_model.", "language_model.model.")] = not layer["quantized"]
    command = ["python", "-c", LEFT_OUT, json.dumps(words), json.dumps(list(kept))]
    result = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout.splitlines()[-1]) == kept
    assert {True, False} == set(kept.values())


def test_no_group_is_cut_by_gpus(untrained, tmp_path, monkeypatch):
    """down_proj has 128 inputs and o_proj 64: both halve into whole groups of 32, but o_proj not into groups of 64."""
    in_32, in_64 = (
        export(untrained / "model", schemes.int4(size, schemes.INTEGER), tmp_path / str(size), monkeypatch)
        for size in (32, 64)
    )
    assert vllm_process.shared_by(1, in_64) == []
    assert vllm_process.shared_by(2, in_32) == ["--tensor-parallel-size", "2"]
    with pytest.raises(
        InputError, match=r"gpu: expected whole groups on each of 2 GPUs, .* 64 inputs of .*o_proj in gro"
    ):
        vllm_process.shared_by(2, in_64)
    assert vllm_process.shared_by(2, untrained / "model") == ["--tensor-parallel-size", "2"]
