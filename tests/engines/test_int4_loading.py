"""Test which weights the loader of int4 folders returns, which ones it frees, and which folders it refuses."""

import gc
import json
import shutil

import pytest
import torch
from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig
from transformers import TorchAoConfig

from in_memory import to_weight
from int4_qat.checkpoint import loading
from int4_qat.engines import inference, int4_loading
from int4_qat.quantization import int4, plain_weight
from int4_qat.system.errors import InputError
from programs import SCHEMES, quantize_options, run_script


@pytest.fixture(scope="module")
def exported(untrained, tmp_path_factory):
    """Return an int4 folder in torchao's layout."""
    folder = tmp_path_factory.mktemp("exported") / "int4"
    options = quantize_options(SCHEMES["float"])
    result = run_script("quantize", "--checkpoint", untrained / "model", "--output", folder, *options)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_are_those_that_transformers_and_torchao_load(exported, dtype):
    theirs = loading.load(exported, dtype, "cpu").state_dict()
    ours = inference.load_model(exported, dtype, "cpu").state_dict()
    assert ours.keys() == theirs.keys()
    in_int4 = {name for name, tensor in theirs.items() if hasattr(tensor, "qdata")}
    assert in_int4
    for name, tensor in theirs.items():
        expected = int4.dequantize(to_weight(tensor)) if name in in_int4 else tensor
        assert torch.equal(ours[name], expected.to(dtype)), name


def test_the_stored_parts_go_at_once(exported):
    """Otherwise stored and loaded weights would share a GPU's memory: transformers gives modules reference cycles."""
    gc.collect()
    gc.disable()
    try:
        model = inference.load_model(exported, torch.bfloat16, "cpu")
        assert not [found for found in gc.get_objects() if type(found) is int4_loading.StoredLinear]
    finally:
        gc.enable()
    assert not any(".weight_" in name or "._weight" in name for name in model.state_dict())


def test_a_module_that_is_more_than_a_linear_is_an_error():
    model = torch.nn.Module()
    model.deep = torch.nn.modules.linear.NonDynamicallyQuantizableLinear(256, 64)
    quantizer = int4_loading.StoredQuantizer(int4_loading.StoredConfig({"deep": {}}, plain_weight.METHOD, {}, None))
    with pytest.raises(InputError, match=r"deep: expected a Linear .* NonDynamicallyQuantizableLinear"):
        quantizer._process_model_before_weight_loading(model)


OTHERS = {  # torchao's other configs, by the message that refuses each
    "int4_packing_format: expected {.*PLAIN.*}, found 'tile_packed_to_4d'": Int4WeightOnlyConfig(
        group_size=64, int4_packing_format="tile_packed_to_4d"
    ),
    "expected the parts .*, found ": Int4WeightOnlyConfig(group_size=32),
    "_type: expected Int4WeightOnlyConfig, found 'Int8WeightOnlyConfig'": Int8WeightOnlyConfig(),
}


@pytest.mark.parametrize("expected", OTHERS)
def test_another_of_torchaos_layouts_is_one_line(exported, tmp_path, expected):
    folder = shutil.copytree(exported, tmp_path / "int4")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = TorchAoConfig(OTHERS[expected]).to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=expected):
        inference.load_model(folder, torch.float32, "cpu")
