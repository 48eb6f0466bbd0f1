"""Verify a folder of results: every hash, and every number of its model card, back to the answers of the models.

Accuracies are recounted from the answers, the summary is rederived from the files of the variants, and the card is
re-rendered and compared character by character. An input outside the folder (raw data, a program) is verified if it is
there. If anything is wrong, the program prints a line for each problem and ends with exit code 1.

    python scripts/verify.py results/demo
"""

import argparse
import sys
from pathlib import Path

from int4_qat.results import verification
from int4_qat.system import errors, files
from int4_qat.system.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder with the results of the model, including provenance.json")
    results = parser.parse_args().results
    if not (results / "provenance.json").is_file():
        raise InputError(f"{results}: expected the results of a finished run, found no provenance.json")
    found = verification.problems(results)
    if found:
        sys.exit("\n".join(f"{results}: {problem}" for problem in found))
    recorded = files.read_json(results / "provenance.json")
    absent = [name for name in recorded["files"] if not verification.place(name, results, recorded).exists()]
    print(f"{len(recorded['files']) - len(absent)} files are as recorded, and every number follows from them")
    if absent:
        print(f"not verified, since the files are missing: {len(absent)} inputs, the first is {absent[0]}")


if __name__ == "__main__":
    errors.run(main)
