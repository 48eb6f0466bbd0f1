"""Decide which files of a model's folder count, once for all later stages.

transformers, peft, vLLM and this workflow look for different files next to the weights. Files that some of them would
take and others would not are left out here, or refused if they change what the model is.
"""

from pathlib import Path

from int4_qat.checkpoint import weight_files
from int4_qat.system import files, sources
from int4_qat.system.errors import InputError

CONFIG = "config.json"
# Files that go with the weights: configs, tokenizers in all their forms, templates, documents.
COMPANIONS = (
    "*.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab*",
    "README.md",
    "LICENSE*",
    "NOTICE*",
)
PATTERNS = ("*.safetensors", *COMPANIONS)  # of the files to take from a repository on the Hub
SECOND_COPIES = ("consolidated*",)  # of the weights, as in Mistral's repositories
ADAPTER = "adapter_config.json"  # transformers would load the adapter and the base model that it names
# Settings of weights that are not in the folder; other engines would apply them.
LEFT_OUT = {"quantize_config.json", "quant_config.json", "hf_quant_config.json", "params.json", "dtypes.json"}
# Keys of config.json that say where or how weights are stored.
FOREIGN_KEYS = ("quantization_config", "compression_config", "transformers_weights")


def taken(source: Path) -> list[Path]:
    """Return the files of a model that count; raise InputError unless they are those of one whole bf16 model."""
    refuse_foreign_settings(source)
    found = [*weights_of(source), *companions_of(source)]
    for file in found:
        files.refuse_lfs_pointer(file)
    return found


def leave_out(folder: Path) -> None:
    """Delete the files of a downloaded folder that do not count; raise InputError as `taken` does."""
    for file in set(folder.rglob("*")) - set(taken(folder)):
        if file.is_file():
            file.unlink()


def weights_of(source: Path) -> list[Path]:
    """Return the weight files and their index, or the single weight file; raise InputError if one is missing."""
    single, index = source / weight_files.WEIGHTS, source / weight_files.INDEX
    if single.exists():  # an index is left out: transformers would not read it, and vLLM would go by it alone
        return [single]
    if not index.exists():
        raise InputError(f"{source}: expected {single.name} or {index.name}, found neither")
    shards = [source / name for name in sorted(set(weight_files.read_index(index).values()))]
    for shard in shards:
        if not shard.exists():
            raise InputError(f"{shard}: expected the file that {index.name} names, found none")
    return [*shards, index]


def companions_of(source: Path) -> list[Path]:
    """Return the files that go with the weights; raise InputError if one would put an adapter on them."""
    if (source / ADAPTER).exists():
        raise InputError(f"{source / ADAPTER}: expected a model without an adapter, found one; merge it first")
    listed = {Path(path) for path in sources.local_files(source)}
    found = {file for pattern in COMPANIONS for file in source.glob(pattern)}
    return sorted(file for file in found & listed if not is_left_out(file))


def is_left_out(file: Path) -> bool:
    """Return whether a file belongs to other weights, or tells other engines about such weights."""
    return file.name in LEFT_OUT or file.name.endswith((".index.json", ".safetensors"))


def refuse_foreign_settings(source: Path) -> None:
    """Raise InputError if config.json is missing, or says that the weights are quantized or stored elsewhere."""
    config = files.read_json(source / CONFIG)
    if not isinstance(config, dict):
        raise InputError(f"{source / CONFIG}: expected a mapping, found {type(config).__name__}")
    for place, settings in {"": config, "text_config.": config.get("text_config")}.items():
        for key in FOREIGN_KEYS:
            if isinstance(settings, dict) and settings.get(key):
                expected = "the weights of a model in bfloat16 in model.safetensors"
                raise InputError(f"{source / CONFIG}: {place}{key}: expected {expected}, found {settings[key]!r:.100}")
