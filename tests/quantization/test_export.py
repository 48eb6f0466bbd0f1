"""transformers loads merged and quantized folders with the expected weights, and the folders hold no pickle."""

import functools
import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict
from torchao.quantization import Int4Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

import in_memory
import merge
import quantize as quantize_program
from int4_qat.checkpoint import architecture, loading, weight_files, weight_writer
from int4_qat.engines import inference
from int4_qat.quantization import exports, int4, plain_weight, schemes
from int4_qat.quantization.formats import compressed_tensors, torchao_plain
from int4_qat.quantization.methods import rtn
from int4_qat.system.errors import InputError
from programs import INT4, SCHEMES, quantize_options, run_in_process, run_script

LINEARS_IN_INT4 = 3 * 7  # layers of the stand-in times linears per layer
NOT_TEXT = ["lm_head", "vision_tower", "multi_modal_projector"]  # for the reference; our own programs find them


def quantize(checkpoint, scheme, output):
    return run_script("quantize", "--checkpoint", checkpoint, *quantize_options(scheme), "--output", output)


@pytest.fixture(scope="module")
def merged(untrained, tmp_path_factory):
    """Return a bf16 checkpoint with a random adapter merged in, and the weights that it must hold."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(1)
    model = inference.load_model(untrained / "model", torch.float32, "cpu")
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    expected = dict(base)
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_B"):
            a, b = module.lora_A["default"].weight.data, module.lora_B["default"].weight.data
            b.normal_()
            key = name.removeprefix("base_model.model.") + ".weight"
            expected[key] = base[key] + 2.0 * b @ a
    adapted.save_pretrained(folder / "adapter")
    paths = ["--model", untrained / "model", "--adapter", folder / "adapter", "--output", folder / "bf16"]
    result = run_script("merge", *paths)
    assert result.returncode == 0, result.stderr
    return folder / "bf16", expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"zero_point": None}, "zero_point: expected float or integer, since symmetric is false, found none"),
        ({"symmetric": True}, "zero_point: expected none, since symmetric is true, found float"),
        ({"num_bits": 8}, "num_bits: expected 4, found 8"),
        ({"group_size": 48}, "group_size: expected 32 or 64 or 128 or 256, found 48"),
    ],
)
def test_a_scheme_that_no_config_may_have_is_refused(untrained, tmp_path, change, expected):
    result = quantize(untrained / "model", INT4._replace(**change), tmp_path / "int4")
    assert (result.returncode, result.stderr.splitlines()[-1]) == (1, f"error: --scheme: {expected}")
    assert not (tmp_path / "int4").exists()


@pytest.fixture(scope="module", params=SCHEMES)
def scheme(request):
    return SCHEMES[request.param]


@pytest.fixture(scope="module")
def quantized(merged, scheme):
    folder = merged[0].with_name(f"int4-{scheme.zero_point}")
    result = quantize(merged[0], scheme, folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_merge_is_w_plus_s_b_a(merged):
    folder, expected = merged
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.allclose(tensor.float(), expected[name], rtol=2**-8, atol=1e-6), name


def exact_numbers(shape):
    """Return small multiples of 1/16; products and short sums of them are exact in fp32, in any order."""
    return torch.randint(-4, 5, shape) / 16


@pytest.fixture(scope="module")
def sharded(untrained, tmp_path_factory):
    """Return a folder with the base model in shards and an adapter whose arithmetic is exact."""
    folder = tmp_path_factory.mktemp("sharded")
    torch.manual_seed(2)
    model = AutoModelForImageTextToText.from_pretrained(untrained / "model", dtype=torch.bfloat16)
    model.save_pretrained(folder / "model", max_shard_size="500KB")
    adapted = get_peft_model(model.float(), LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj", "up_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = exact_numbers(parameter.shape)
    adapted.save_pretrained(folder / "adapter")
    return folder


def contents(folder):
    """Return the file, dtype, shape and bytes of every tensor in a folder, by name, and the index, if there is one."""
    tensors = {
        name: (tensor.path.name, tensor.dtype, tensor.shape, tensor.read().view(torch.uint8).numpy().tobytes())
        for name, tensor in weight_files.stored_tensors(folder).items()
    }
    index = folder / weight_files.INDEX
    return tensors, json.loads(index.read_text())["weight_map"] if index.exists() else None


def config_of(folder):
    config = json.loads((folder / "config.json").read_text())
    config.get("quantization_config", {}).pop("modules_to_not_convert", None)
    return config


def test_streaming_writes_what_transformers_peft_and_torchao_write(sharded, scheme, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_writer, "SHARD_SIZE", "500KB")
    paths = ["--model", sharded / "model", "--adapter", sharded / "adapter", "--output", tmp_path / "bf16"]
    run_in_process(merge, monkeypatch, *paths)
    oracle = tmp_path / "oracle-bf16"
    in_memory.merge(sharded / "model", sharded / "adapter", oracle, torch.float32, max_shard_size="500KB")
    assert contents(tmp_path / "bf16") == contents(oracle)
    assert len(set(contents(oracle)[1].values())) > 1
    assert config_of(tmp_path / "bf16") == config_of(sharded / "model")

    options = quantize_options(scheme)
    run_in_process(quantize_program, monkeypatch, "--checkpoint", oracle, *options, "--output", tmp_path / "int4")
    in_memory.quantize(oracle, scheme, NOT_TEXT, tmp_path / "oracle-int4", max_shard_size="500KB")
    assert contents(tmp_path / "int4") == contents(tmp_path / "oracle-int4")
    assert config_of(tmp_path / "int4") == config_of(tmp_path / "oracle-int4")
    for shard in (tmp_path / "int4").glob("*.safetensors"):
        with safe_open(shard, "pt") as ours, safe_open(tmp_path / "oracle-int4" / shard.name, "pt") as theirs:
            # each file of theirs describes every tensor by parameter name; of ours, the int4 ones and the file's own
            expected, found = theirs.metadata(), ours.metadata()
            in_int4 = {name for name in expected if name != "tensor_names" and "Int4Tensor" in expected[name]}
            assert len(in_int4) == LINEARS_IN_INT4
            assert set(json.loads(found["tensor_names"])) == found.keys() - {"tensor_names", "format"}
            assert all(json.loads(found[name]) == json.loads(expected[name]) for name in in_int4)


@pytest.mark.parametrize("shard_size", ["5GB", "9KB"])
def test_a_loader_that_goes_by_the_names_in_the_files_finds_every_weight(merged, tmp_path, monkeypatch, shard_size):
    """vLLM's loader builds torchao's tensors from each file and the leftovers of the one before, and drops the rest."""
    monkeypatch.setattr(weight_writer, "SHARD_SIZE", shard_size)
    options = quantize_options()
    run_in_process(quantize_program, monkeypatch, "--checkpoint", merged[0], *options, "--output", tmp_path / "int4")
    found, left, split = {}, {}, 0
    for shard in sorted((tmp_path / "int4").glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            tensors, left = unflatten_tensor_state_dict(load_file(shard) | left, file.metadata())
        found |= tensors
        split += len(left)
    assert left == {}
    assert (split > 0) == (shard_size == "9KB")
    source = load_file(merged[0] / "model.safetensors")
    assert found.keys() == source.keys()
    in_int4 = {name for name, tensor in found.items() if isinstance(tensor, Int4Tensor)}
    assert len(in_int4) == LINEARS_IN_INT4
    for name, tensor in found.items():
        if name in in_int4:
            assert torch.equal(
                int4.dequantize(in_memory.to_weight(tensor)), int4.fake_quantize(source[name].float(), INT4)
            )
        else:
            assert torch.equal(tensor, source[name])
    loaded = loading.load(tmp_path / "int4", torch.bfloat16, "cpu")
    weights = [module.weight for module in loaded.modules() if isinstance(getattr(module, "weight", None), Int4Tensor)]
    assert len(weights) == LINEARS_IN_INT4


def change_adapter(sharded, folder, change):
    """Copy the adapter to a folder and change its tensors."""
    shutil.copytree(sharded / "adapter", folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def rename(tensors, before, after):
    for name in [name for name in tensors if before in name]:
        tensors[name.replace(before, after)] = tensors.pop(name)


def test_a_folder_without_an_adapter_is_one_line(untrained, tmp_path):
    """peft would ask the Hub for it."""
    paths = ["--model", untrained / "model", "--adapter", tmp_path, "--output", tmp_path / "merged"]
    result = run_script("merge", *paths)
    assert result.returncode == 1
    expected = f"error: {tmp_path / 'adapter_config.json'}: expected the config of an adapter, found none"
    assert result.stderr.splitlines()[-1] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: rename(tensors, "layers.2", "layers.7"), "lora_A.weight: expected a tensor, found none"),
        (
            lambda tensors: tensors.update({"layers.9.lora_A.weight": torch.ones(2)}),
            "layers.9.lora_A.weight: expected only LoRA on",
        ),
    ],
)
def test_every_adapter_is_used(sharded, tmp_path, monkeypatch, change, message):
    change_adapter(sharded, tmp_path / "adapter", change)
    paths = ["--model", sharded / "model", "--adapter", tmp_path / "adapter", "--output", tmp_path / "bf16"]
    with pytest.raises(InputError, match=message):
        run_in_process(merge, monkeypatch, *paths)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_weights_that_do_not_fit_are_refused(sharded, tmp_path):
    shutil.copytree(sharded / "model", tmp_path / "model")
    shard = max((tmp_path / "model").glob("*.safetensors"))
    whole = shard.read_bytes()

    def read():
        architecture.parameter_names(
            architecture.without_weights(tmp_path / "model"), weight_files.stored_tensors(tmp_path / "model"), tmp_path
        )

    def message():
        with pytest.raises(InputError) as caught:
            read()
        return str(caught.value)

    read()
    shard.write_bytes(whole[:-100])
    assert shard.name in message()
    tensors = load_file(sharded / "model" / shard.name)
    name = max(tensors)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, shard)
    assert f"expected {name} in the file that the index names" in message()
    save_file(tensors | {name: torch.zeros(3)}, shard)
    assert f"expected only parameters of Gemma3ForConditionalGeneration, found {name} [3]" in message()


def test_a_wrong_export_is_counted(merged, quantized, scheme, tmp_path):
    source = weight_files.stored_tensors(merged[0])
    shutil.copytree(quantized, tmp_path / "int4")
    targets = weight_files.stored_tensors(tmp_path / "int4")
    key = "language_model.model.layers.1.mlp.up_proj.weight"

    def differing():
        expected = rtn.quantize(exports.row_blocks(source[key]), scheme)
        return exports.differing(expected, torchao_plain.reader(key, targets))

    assert differing() == 0
    qdata = targets[plain_weight.part_name(key, plain_weight.CODES)]
    qdata.write(qdata.read(5, 6) ^ 0x11, 5)  # both nibbles of a byte
    assert differing() == 2
    with pytest.raises(InputError, match=f"2 weights differ from what was written, the first in {key}"):
        weight_writer.refuse_differences(tmp_path, {"norm.weight": 0, key: 2})


def test_a_weight_is_quantized_once(merged, tmp_path):
    """What is read back is checked by a digest, in both layouts, for each kind of zero point that they hold."""
    sources = weight_files.stored_tensors(merged[0])
    keys = [f"language_model.model.layers.{number}.mlp.down_proj.weight" for number in range(2)]
    plan = {key: torch.empty(sources[key].shape, dtype=torch.bfloat16, device="meta") for key in keys}
    for scheme in (schemes.int4(64, zero_point) for zero_point in (schemes.FLOAT, schemes.INTEGER, None)):
        for layout in (layout for layout in (torchao_plain, compressed_tensors) if not layout.misfit(scheme)):
            made = tmp_path / f"{scheme.zero_point}-{layout.FOLDER}"
            laid_out, metadata = layout.lay_out(plan, {key: key for key in plan}, {*keys}, scheme)
            targets = weight_writer.create(made, laid_out, metadata)

            def blocks(key, scheme=scheme, made=made):
                with made.with_suffix(".calls").open("a") as calls:  # called in another process
                    calls.write(f"{key}\n")
                return rtn.quantize(exports.row_blocks(sources[key]), scheme)

            in_int4 = {key: functools.partial(blocks, key) for key in keys}
            assert exports.fill(layout, targets, {}, in_int4) == dict.fromkeys(keys, 0)
            assert sorted(made.with_suffix(".calls").read_text().split()) == keys


@pytest.mark.parametrize("layout", [torchao_plain, compressed_tensors])
def test_what_is_written_wrong_is_counted(merged, layout, tmp_path, monkeypatch):
    """Two codes are off by one, and one scale has the wrong sign, which shows in each nonzero code of its group."""
    scheme = schemes.int4(64, schemes.INTEGER)
    sources = weight_files.stored_tensors(merged[0])
    keys = [f"language_model.model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    kept = {key: sources[key] for key in ("language_model.model.norm.weight",)}
    plan = {key: torch.empty(sources[key].shape, dtype=torch.bfloat16, device="meta") for key in (*kept, *keys)}
    laid_out, metadata = layout.lay_out(plan, {key: key for key in plan}, {*keys}, scheme)
    targets = weight_writer.create(tmp_path / "int4", laid_out, metadata)
    in_int4 = {key: functools.partial(rtn.quantize, list(exports.row_blocks(sources[key])), scheme) for key in keys}
    assert set(exports.fill(layout, targets, kept, in_int4).values()) == {0}
    own = layout.write

    def wrong(key, blocks, targets):
        changed = []
        for rows, weight in blocks:
            codes, scale = weight.codes.clone(), weight.scale.clone()
            if "gate" in key and not changed:
                codes[0, :2] ^= 1
            if "up" in key and not changed:
                scale[0, 0] *= -1
            changed.append((rows, weight._replace(codes=codes, scale=scale)))
        own(key, changed, targets)

    monkeypatch.setattr(layout, "write", wrong)
    found = exports.fill(layout, targets, kept, in_int4)
    (first, *_) = in_int4[keys[1]]()
    assert [found[key] for key in keys] == [2, first[1].codes[0, :64].count_nonzero(), 0]


def test_merge_keeps_tokenizer_processor_and_template(merged, untrained):
    for name in ("tokenizer.json", "processor_config.json", "chat_template.jinja", "generation_config.json"):
        assert (merged[0] / name).exists(), name
    assert AutoProcessor.from_pretrained(merged[0]).tokenizer.chat_template
    before, after = (json.loads((folder / "tokenizer.json").read_text()) for folder in (untrained / "model", merged[0]))
    assert before == after


def test_transformers_reads_the_very_codes(merged, quantized, scheme):
    source = AutoModelForImageTextToText.from_pretrained(merged[0]).state_dict()
    model = AutoModelForImageTextToText.from_pretrained(quantized, dtype=torch.bfloat16)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Int4Tensor)}
    assert len(tensors) == 3 * 7
    for name, tensor in tensors.items():
        expected = int4.quantize(source[name], scheme)
        assert torch.equal(tensor.qdata, plain_weight.pack(expected.codes)), name
        assert torch.equal(tensor.scale, expected.scale)
        assert torch.equal(tensor.zero_point, expected.zero_point)


def test_the_cpu_loader_uses_the_same_arithmetic(merged, quantized, scheme):
    source = inference.load_model(merged[0], torch.float32, "cpu").state_dict()
    loaded = inference.load_model(quantized, torch.float32, "cpu")
    for name, tensor in loaded.state_dict().items():
        is_quantized = "language_model" in name and "_proj" in name
        weight = source[name]
        expected = int4.dequantize(int4.quantize(weight, scheme)) if is_quantized else weight
        assert torch.equal(tensor, expected), name
    assert loaded(input_ids=torch.tensor([[2, 5, 6]])).logits.isfinite().all()


def test_files_hold_no_pickle_and_half_a_byte_a_weight(quantized):
    names = {path.suffix for path in quantized.iterdir()}
    assert names <= {".safetensors", ".json", ".jinja"}
    manifest = json.loads((quantized / "manifest.json").read_text())
    done = [layer for layer in manifest["layers"] if layer["quantized"]]
    weights = sum(layer["shape"][0] * layer["shape"][1] for layer in done)
    with safe_open(quantized / "model.safetensors", "pt") as tensors:
        stored = [key for key in tensors.keys() if "._weight_" in key]  # noqa: SIM118
        bytes_on_disk = sum(tensors.get_tensor(key).nbytes for key in stored)
    assert bytes_on_disk / weights <= 0.57
    assert bytes_on_disk == sum(layer["bytes_after"] for layer in done)
    left = [layer for layer in manifest["layers"] if not layer["quantized"]]
    assert left
    assert {layer["reason"] for layer in left} == {"no text passes through it", "the output head"}
    assert json.loads((quantized / "config.json").read_text())["quantization_config"]["quant_method"] == "torchao"


def test_a_layer_that_does_not_fit_is_named_in_the_manifest(merged, tmp_path):
    result = quantize(merged[0], schemes.int4(128), tmp_path / "int4")
    assert result.returncode == 0, result.stderr
    layers = json.loads((tmp_path / "int4" / "manifest.json").read_text())["layers"]
    reasons = {layer["name"].rpartition(".")[2]: layer["reason"] for layer in layers if "language" in layer["name"]}
    assert reasons["q_proj"] == "group size 128 does not divide 64 inputs"
    assert reasons["down_proj"] == "linear, 128 inputs in groups of 128"


def test_nothing_to_quantize_is_an_error(merged, tmp_path):
    result = quantize(merged[0], schemes.int4(256), tmp_path / "int4")
    assert result.returncode == 1
    assert "expected a layer that this group size and `ignore` let be quantized" in result.stderr
    assert list(tmp_path.iterdir()) == []
