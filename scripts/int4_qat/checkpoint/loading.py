"""Load checkpoints with transformers; nothing is fetched, and no code of a checkpoint is run."""

from pathlib import Path

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from safetensors import SafetensorError
from transformers import PreTrainedModel

from int4_qat.checkpoint import architecture, weight_files
from int4_qat.system import devices
from int4_qat.system.errors import InputError


def load(folder: Path | str, dtype: torch.dtype, device: str, **options) -> PreTrainedModel:
    """Return the model of a local folder in evaluation mode, its weights as they are stored.

    options go to transformers' from_pretrained.

    A model that does not fit on one GPU is spread layer by layer over the GPUs that this process sees. Raise InputError
    on a missing, unexpected or mismatched key, or if the model does not fit on all these GPUs together.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: expected a GPU for 'cuda', found none")
    place = device
    if device == "cuda":
        place = devices.place_for(weight_files.loaded_bytes(Path(folder), dtype), str(folder))
    try:
        model, report = architecture.auto_class(architecture.read_config(folder)).from_pretrained(
            folder,
            dtype=dtype,
            device_map=place,
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
        raise InputError(f"{folder}: expected weights that fit config.json, found {problems}")
    if place != device:
        refuse_offloading(model, folder)
        answer_where_asked(model.base_model, model.device)
    return model.eval()


def refuse_offloading(model: PreTrainedModel, folder: Path | str) -> None:
    """Raise InputError if transformers kept layers of a spread model off the GPUs, since they did not fit."""
    elsewhere = [name for name, place in model.hf_device_map.items() if place in ("cpu", "disk")]
    if elsewhere:
        raise InputError(f"device: expected GPU memory for all layers of {folder}, found none for {elsewhere[0]}")


def answer_where_asked(body: torch.nn.Module, device: torch.device) -> None:
    """Make the body of a model that is spread over GPUs return its states on the GPU of its first layer.

    accelerate does so for the whole model, but the body is also called separately.
    """
    add_hook_to_module(body, AlignDevicesHook(execution_device=device, io_same_device=True), append=True)
