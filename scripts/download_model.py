"""Bring a base model to a local folder: from the Hub at a pinned commit, or a link to a local folder.

Only safetensors, JSON, tokenizer and template files are taken: no pickle, no code.

    python scripts/download_model.py --source /models/gemma-3-12b-it --output resources/models/gemma-3-12b-it
"""

import argparse
import math
from collections import Counter
from pathlib import Path

from safetensors import SafetensorError, safe_open

from int4_qat import errors, files, hub
from int4_qat.errors import InputError

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "README.md", "LICENSE*"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="hf://<owner>/<name>@<commit> or a local folder")
    parser.add_argument("--output", required=True, type=Path, help="folder of the model")
    arguments = parser.parse_args()
    with files.whole(arguments.output) as folder:
        remote = hub.parse(arguments.source)
        if remote:
            hub.download(remote, folder, PATTERNS)
        else:
            link(Path(arguments.source), folder)
        check(folder, arguments.source)


def link(source: Path, folder: Path) -> None:
    """A folder of links to a local model's files: nothing of many gigabytes is copied."""
    if not source.is_dir():
        raise InputError(f"{source}: expected a folder with a model, found none")
    folder.mkdir()
    for pattern in PATTERNS:
        for file in source.glob(pattern):
            (folder / file.name).symlink_to(file.resolve())


def check(folder: Path, source: str) -> None:
    """A model has a config, a tokenizer, and all its weights as safetensors, most of them in bfloat16."""
    for name in ("config.json", "tokenizer_config.json"):
        if not (folder / name).exists():
            raise InputError(f"{source}: expected {name}, found none")
    index = folder / "model.safetensors.index.json"
    shards = set(files.read_json(index)["weight_map"].values()) if index.exists() else {"model.safetensors"}
    for shard in sorted(shards):
        if not (folder / shard).exists():
            raise InputError(f"{source}: expected {shard}, found none")
    elements = sum((count_elements(folder / shard) for shard in shards), Counter())
    most = max(elements, key=elements.get, default="none")
    if most != "BF16":
        raise InputError(f"{source}: expected weights in bfloat16 (BF16), found {most}; convert them")


def count_elements(path: Path) -> Counter[str]:
    """How many elements a file holds of each type, as safetensors calls it; InputError if the file is not whole."""
    elements: Counter[str] = Counter()
    try:
        with safe_open(path, "numpy") as tensors:
            for found in map(tensors.get_slice, tensors.keys()):
                elements[found.get_dtype()] += math.prod(found.get_shape())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: the weights cannot be read ({str(error).splitlines()[0]})") from None
    return elements


if __name__ == "__main__":
    errors.run(main)
