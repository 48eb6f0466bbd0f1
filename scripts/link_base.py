"""Make the folder of a variant from the base model's own: links to its files, none of which is copied.

python scripts/link_base.py --model resources/models/demo --output results/demo/base-bf16/checkpoint
"""

import argparse
from pathlib import Path

from int4_qat.system import errors, files
from int4_qat.system.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder with the base model")
    parser.add_argument("--output", required=True, type=Path, help="folder for the links")
    arguments = parser.parse_args()
    if not arguments.model.is_dir():
        raise InputError(f"{arguments.model}: expected a folder with a model, found none")
    with files.whole(arguments.output) as folder:
        files.link(arguments.model, folder)


if __name__ == "__main__":
    errors.run(main)
