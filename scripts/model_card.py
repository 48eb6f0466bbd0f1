"""Write the model card of one quantized variant from the JSON files of its results alone.

A figure that is missing, or that differs between the summary and the file it came from, is an error.

    python scripts/model_card.py --results results/demo --settings '{"model": "demo", "arms": {...}, ...}' \\
        --output results/demo/model_card.md
"""

import argparse
import json
from pathlib import Path

from int4_qat.results import card
from int4_qat.system import errors, files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", required=True, type=Path, help="folder with the results of the model")
    parser.add_argument("--settings", required=True, type=json.loads, help="config of this model, as JSON")
    parser.add_argument("--output", required=True, type=Path, help="path of model_card.md")
    arguments = parser.parse_args()
    text = card.render(arguments.results, arguments.settings)
    with files.whole(arguments.output) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    errors.run(main)
