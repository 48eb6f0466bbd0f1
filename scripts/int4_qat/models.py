"""One loader for bf16 and int4 checkpoints, on any device; nothing is fetched and no code of a checkpoint is run."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torchao.quantization import Int4Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from int4_qat import int4
from int4_qat.errors import InputError

IMAGE_PARTS = ("vision_tower", "multi_modal_projector")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_model(folder: Path | str, dtype: torch.dtype, device: str, dequantize: bool = True) -> PreTrainedModel:
    """A local checkpoint in evaluation mode; InputError on a missing, unexpected or mismatched key.

    int4 weights run in torchao's kernels on a GPU. A CPU has none for them: there they are dequantized to `dtype`
    at loading, with the arithmetic of `int4`, so memory and speed are those of unquantized weights.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: expected a GPU for 'cuda', found none")
    if not (Path(folder) / "config.json").exists():
        raise InputError(f"{folder}: expected a model's folder, found no config.json in it")
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    auto_class = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    try:
        model, report = auto_class.from_pretrained(
            folder,
            dtype=dtype,
            device_map=device,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder}: the weights cannot be read ({str(error).splitlines()[0]})") from None
    problems = {name: keys for name, keys in report.items() if keys}
    if problems:
        raise InputError(f"{folder}: the weights do not fit the config: {problems}")
    if device == "cpu" and dequantize:
        dequantize_weights(model, dtype)
    return model.eval()


@torch.no_grad()
def dequantize_weights(model: torch.nn.Module, dtype: torch.dtype) -> int:
    """Replace every torchao int4 weight by what it stands for; returns how many there were."""
    quantized = [module for module in model.modules() if isinstance(getattr(module, "weight", None), Int4Tensor)]
    for module in quantized:
        module.weight = torch.nn.Parameter(int4.dequantize(from_torchao(module.weight)).to(dtype), requires_grad=False)
    if quantized:
        model.config.quantization_config = None
        model.hf_quantizer = None
        model.is_quantized = False
        model.to(dtype)
    return len(quantized)


def is_dequantized(folder: Path, device: str) -> bool:
    """Whether a checkpoint's weights run as floats on this device though they are stored as int4."""
    return device == "cpu" and (folder / "manifest.json").exists()


def stored_tensors(folder: Path) -> Iterator[tuple[str, str, int]]:
    """Name, dtype and bytes of each tensor in a folder's weight files."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        header.pop("__metadata__", None)
        for name, tensor in header.items():
            begin, end = tensor["data_offsets"]
            yield name, tensor["dtype"], end - begin


def text_bytes(folder: Path) -> int:
    """Bytes of the stored weights that every generated token needs: all but those that see images."""
    return sum(size for name, _, size in stored_tensors(folder) if not set(name.split(".")) & set(IMAGE_PARTS))


def to_torchao(quantized: int4.Int4Weight, group_size: int) -> Int4Tensor:
    """torchao's tensor in plain packing: what transformers and vLLM load."""
    return Int4Tensor(
        qdata=int4.pack(quantized.codes),
        scale=quantized.scale,
        zero_point=quantized.zero_point,
        block_size=[1, group_size],
        shape=quantized.codes.shape,
    )


def from_torchao(weight: Int4Tensor) -> int4.Int4Weight:
    """The codes, scale and zero point of torchao's tensor."""
    return int4.Int4Weight(int4.unpack(weight.qdata), weight.scale, weight.zero_point)


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model's parameters and buffers in memory, tied ones once, int4 ones as packed."""
    tensors: dict[int, torch.Tensor] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        parts = (tensor.qdata, tensor.scale, tensor.zero_point) if isinstance(tensor, Int4Tensor) else (tensor,)
        tensors.update({part.data_ptr(): part for part in parts})
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def copy_companions(source: Path, folder: Path) -> None:
    """Copy what a model folder holds besides weights and config, unless `folder` has it already."""
    for file in sorted(source.iterdir()):
        is_weights = file.suffix == ".safetensors" or file.name.endswith(".safetensors.index.json")
        if file.is_file() and not is_weights and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
