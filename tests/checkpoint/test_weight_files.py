"""Test what is known of a model's weights before they are loaded, and what is read of them."""

import io

import pytest
import torch
from safetensors.torch import save_file

from int4_qat.checkpoint import adapters, loading, weight_files
from int4_qat.system.errors import InputError


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_bytes_of_loaded_weights_are_those_of_the_parameters(untrained, dtype):
    model = loading.load(untrained / "model", dtype, "cpu")
    expected = sum(parameter.nbytes for parameter in model.parameters())  # tied weights count once
    assert weight_files.loaded_bytes(untrained / "model", dtype) == expected


class Slow(io.FileIO):
    """A file of which a read returns at most five bytes, as Linux returns at most 2 GiB."""

    def readinto(self, buffer):
        return super().readinto(memoryview(buffer)[:5])


def test_a_tensor_may_take_several_reads_and_not_end_early(tmp_path, monkeypatch):
    written = torch.arange(7.0)
    save_file({"weight": written}, tmp_path / "model.safetensors")
    stored = weight_files.stored_tensors(tmp_path)["weight"]
    monkeypatch.setattr("pathlib.Path.open", lambda path, mode, buffering: Slow(path))
    assert torch.equal(stored.read(), written)
    with open(tmp_path / "model.safetensors", "r+b") as stream:
        stream.truncate(stored.begin + stored.nbytes - 1)
    with pytest.raises(InputError, match=r"model\.safetensors: expected a whole file, found a truncated one"):
        stored.read()


def test_an_adapter_is_added_to_the_weight_in_bf16(tmp_path):
    """Training in bf16 loads it so, whatever the file holds."""
    generator = torch.Generator().manual_seed(0)
    weight, a, b = (torch.randn(shape, generator=generator) for shape in [(8, 16), (2, 16), (8, 2)])
    save_file({"weight": weight}, tmp_path / "model.safetensors")
    adapter = adapters.Adapter(a, b, 0.5)
    stored = weight_files.stored_tensors(tmp_path)["weight"]
    found = torch.cat([values for _, values in adapters.merged_blocks(stored, adapter)])
    assert torch.equal(found, (weight.bfloat16().float() + 0.5 * b @ a).bfloat16())
