"""Check, before anything is trained, that lm-eval can score the MMLU that was downloaded.

Every subject of MMLU, and no other, must have two test questions, and in dev an example for each shot. Writes how many
each has at least.

    python scripts/check_mmlu.py --mmlu resources/mmlu --num-fewshot 5 --output resources/mmlu_questions.json
"""

import argparse
from pathlib import Path

from int4_qat import errors, files, mmlu_parquet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mmlu", required=True, type=Path, help="folder with dev, validation, test .parquet")
    parser.add_argument("--num-fewshot", required=True, type=int, help="examples ahead of each question")
    parser.add_argument("--output", required=True, type=Path, help="JSON with the least number of questions a subject")
    arguments = parser.parse_args()
    least = mmlu_parquet.check_questions(arguments.mmlu, arguments.num_fewshot)
    # Nothing of --num-fewshot stands there: the same data give the same file, whatever the shots.
    files.write_json(arguments.output, {"least": least})
    print(", ".join(f"{split}: {count} or more questions a subject" for split, count in least.items()))


if __name__ == "__main__":
    errors.run(main)
