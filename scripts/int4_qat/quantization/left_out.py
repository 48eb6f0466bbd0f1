"""Find the modules that an export leaves in bf16, and the names by which loaders ask for them."""

from int4_qat.checkpoint import module_names

# vLLM's prefixes by those in checkpoints (hf_to_vllm_mapper of its multimodal models).
VLLM_PREFIXES = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}


def split(layers: list[dict]) -> tuple[list[str], list[str]]:
    """Return the names of the linears that are in int4, and of those that are not."""
    in_int4 = [layer["name"] for layer in layers if layer["quantized"]]
    return in_int4, [layer["name"] for layer in layers if not layer["quantized"]]


def roots(layers: list[dict]) -> list[str]:
    """Return the topmost modules whose linears all stay in bf16."""
    in_int4, kept = split(layers)
    return module_names.unreached_roots([*in_int4, *kept], set(in_int4))


def names_of(module: str, names: dict[str, str]) -> list[str]:
    """Return the names of a module: in transformers, in the checkpoint, and in vLLM.

    `names` maps the parameters' names in the checkpoint to their names in transformers.
    """
    stored = stored_name(module, names)
    return list(dict.fromkeys([module, stored, vllm_name(module), vllm_name(stored)]))


def stored_name(module: str, names: dict[str, str]) -> str:
    """Return the name that a module has in the checkpoint."""
    for key, name in names.items():
        if name.startswith(f"{module}.") and key.endswith(end := name.removeprefix(module)):
            return key.removesuffix(end)
    return module


def vllm_name(name: str) -> str:
    """Return vLLM's name for a module of a multimodal model, given its name in the checkpoint."""
    for prefix, theirs in VLLM_PREFIXES.items():
        if name.startswith(prefix):
            return theirs + name.removeprefix(prefix)
    return name
