"""Refuse to train or calibrate on test text: neither may read much of a held-out text.

The program counts each held-out text's runs of 13 words that also occur in each other text (data/shared_words.py), and
ends with an error if they are more than 1% of its runs. Training questions count as training shows them, without the
marks of a chat template; conversations count by the content of their messages.

    python scripts/check_texts.py --held-out wikitext=resources/texts/wikitext.txt \\
        --training questions=resources/mmlu_train/auxiliary_train.parquet chats=resources/texts/chats.jsonl \\
        --calibration wikitext_train=resources/texts/wikitext_train.txt --output resources/text_contamination.json
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from int4_qat.data import mmlu_parquet, named_files, parquet_files, shared_words
from int4_qat.system import errors, files
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import training_texts

# Some overlap is normal, since articles quote the same sources: 0.0005% of wikitext-2's test text occurs in its
# validation text, and 0.06% of one half of GSM8K in the other. A page of a held-out text among others is more.
MOST = 0.01
KEYS = {"training": "finetune.texts", "calibration": "calibration.texts"}  # config keys, by the option for their texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--held-out", required=True, nargs="*", metavar="NAME=PATH", help="held-out texts to measure on"
    )
    for option in KEYS:
        kinds = "texts, conversations, or parquet files with questions"
        parser.add_argument(f"--{option}", required=True, nargs="*", metavar="NAME=PATH", help=kinds)
    parser.add_argument("--output", required=True, type=Path, help="JSON file for the counts")
    arguments = parser.parse_args()
    held_out = named_files.parse("--held-out", arguments.held_out, "text")
    read = {key: named_files.parse(f"--{option}", vars(arguments)[option], "text") for option, key in KEYS.items()}
    found = count(held_out, {name: path for texts in read.values() for name, path in texts.items()})
    refuse_test_text(found, read)
    files.write_json(arguments.output, found)
    for name, counted in found.items():
        for text, standing in counted["in_texts"].items():
            print(f"{name}: {standing} of {counted['runs']} runs of {shared_words.LONGEST} words occur in {text}")


def count(held_out: dict[str, Path], others: dict[str, Path]) -> dict[str, dict]:
    """Return, for each held-out text, how many runs of words it has and how many of them occur in each other text."""
    runs = {name: shared_words.runs(path.read_text(encoding="utf-8")) for name, path in held_out.items()}
    wanted = set().union(*runs.values())
    found = {
        text: shared_words.found(wanted, tqdm(parts_of(path), desc=text, unit=" parts", mininterval=1))
        for text, path in others.items()
    }
    return {
        name: {"runs": len(own), "in_texts": {text: len(own & standing) for text, standing in found.items()}}
        for name, own in runs.items()
    }


def parts_of(path: Path) -> Iterator[str]:
    """Yield a text in parts: a file of text or of conversations in blocks, a parquet of questions row by row."""
    if path.suffix == ".parquet":
        for batch in parquet_files.read_batches(path, mmlu_parquet.SCHEMA.names):
            user, assistant = training_texts.messages(batch)
            yield from training_texts.concatenate(user, "\n", assistant).to_pylist()
    else:
        yield from shared_words.parts_of(path)


def refuse_test_text(found: dict[str, dict], read: dict[str, dict[str, Path]]) -> None:
    """Raise InputError, naming the config's keys, if another text has more than MOST of a held-out text's runs."""
    for name, counted in found.items():
        for text, standing in counted["in_texts"].items():
            if standing > MOST * counted["runs"]:
                share = f"{standing / counted['runs']:.1%}"
                keys = " and ".join(key for key, texts in read.items() if text in texts)
                raise InputError(
                    f"{keys}: expected at most {MOST:.0%} of the held-out text '{name}' in '{text}', "
                    f"by runs of {shared_words.LONGEST} words, found {share}"
                )


if __name__ == "__main__":
    errors.run(main)
