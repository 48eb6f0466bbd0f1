"""A checkpoint as transformers loads it; nothing is fetched and no code of a checkpoint is run."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from int4_qat.checkpoint import architecture, weight_files
from int4_qat.system import devices
from int4_qat.system.errors import InputError


def load(folder: Path | str, dtype: torch.dtype, device: str, **options) -> PreTrainedModel:
    """Return the model of a local folder in evaluation mode, its weights as they are stored.

    options go to transformers' from_pretrained.

    Raise InputError on a missing, unexpected or mismatched key, or if it does not fit the GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: expected a GPU for 'cuda', found none")
    if device == "cuda":
        devices.refuse_too_small(weight_files.file_bytes(Path(folder)), str(folder), devices.free_memory())
    try:
        model, report = architecture.auto_class(architecture.read_config(folder)).from_pretrained(
            folder,
            dtype=dtype,
            device_map=device,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder}: the weights cannot be read ({str(error).splitlines()[0]})") from None
    problems = {name: keys for name, keys in report.items() if keys}
    if problems:
        raise InputError(f"{folder}: the weights do not fit the config: {problems}")
    return model.eval()
