"""Write data sets for lm-eval's tasks, each with the files, columns and card that it has on the Hub."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from int4_qat.data import mmlu
from programs import ROOT

SHARD = "{config}/{split}-00000-of-00001.parquet"
WIKITEXT = "wikitext-2-raw-v1"
SHARED_TEXT = ROOT.parent / "shared" / "text" / "wikitext2_valid.txt"
MADE_UP = " = A made @-@ up page = \n \n It was written in 1 @,@ 999 . It says little : this , and that ( or so ) . \n"


def write(folder: Path, configs: Mapping[str, Mapping[str, Sequence[dict]]], place: str = SHARD) -> Path:
    """Write the rows of each split of each config, and the card that names their files."""
    described = []
    for config, splits in configs.items():
        files = []
        for split, rows in splits.items():
            path = folder / place.format(config=config, split=split)
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(list(rows)), path)
            files.append({"split": split, "path": str(path.relative_to(folder))})
        described.append({"config_name": config, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': described})}---\n")
    return folder


def questions(standin: Path, split: str = "test") -> list[dict]:
    """Return the stand-in's questions of a split, each with question, subject, choices and answer."""
    return pq.read_table(standin / "mmlu" / "all" / f"{split}-00000-of-00001.parquet").to_pylist()


def arc(folder: Path, config: str, rows: Sequence[dict], sizes: Mapping[str, int]) -> Path:
    """Write a config of allenai/ai2_arc made of the given questions, the last ones first."""
    waiting, splits = list(rows), {}
    for split, size in sizes.items():
        splits[split] = [
            {
                "id": str(index),
                "question": row["question"],
                "choices": {"text": row["choices"], "label": list("ABCD")},
                "answerKey": "ABCD"[row["answer"]],
            }
            for index, row in enumerate(waiting.pop() for _ in range(size))
        ]
    return write(folder, {config: splits})


def mmlu_by_subject(folder: Path, standin: Path) -> Path:
    """Write cais/mmlu with one config per subject, made of the stand-in's questions."""
    rows = {split: questions(standin, split) for split in ("test", "validation", "dev")}
    by_subject = {
        subject: {split: [row for row in of_split if row["subject"] == subject] for split, of_split in rows.items()}
        for subject in mmlu.SUBJECTS
    }
    return write(folder, by_subject)


def wikitext(folder: Path, pages: Sequence[str]) -> Path:
    """Write the wikitext-2 config of EleutherAI/wikitext_document_level, with the same pages in each split."""
    rows = [{"page": page} for page in pages]
    splits = dict.fromkeys(("train", "validation", "test"), rows)
    return write(folder, {WIKITEXT: splits}, "{config}/{config}-{split}.parquet")


def pages(words: int, count: int) -> list[str]:
    """Return `count` texts of at least `words` words each, from the shared wikitext if it is there, else made up."""
    text = SHARED_TEXT.read_text() if SHARED_TEXT.exists() else MADE_UP * 1000
    pieces = text.split(" ")
    return [" ".join(pieces[start * words :][: words + start]) for start in range(count)]


def truthful(folder: Path) -> Path:
    """Write the multiple_choice config of truthfulqa/truthful_qa."""
    targets = {"choices": ["yes", "no"], "labels": [1, 0]}
    rows = [{"question": f"{index}?", "mc1_targets": targets, "mc2_targets": targets} for index in range(4)]
    return write(folder, {"multiple_choice": {"validation": rows}})


def mrpc(folder: Path) -> Path:
    """Write nyu-mll/glue's mrpc, whose task has one metric per document (acc) and one over all documents (f1)."""
    rows = [{"sentence1": f"It is {n}.", "sentence2": "It is one.", "label": n % 2, "idx": n} for n in range(6)]
    return write(folder, {"mrpc": {"train": rows, "validation": rows}})


def gsm8k(folder: Path) -> Path:
    """Write openai/gsm8k's main config, whose task generates answers and reads them with two filters."""
    rows = [{"question": f"What is {n} and 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(4)]
    return write(folder, {"main": {"train": rows, "test": rows}})


def lambada(folder: Path, texts: Sequence[str]) -> Path:
    """Write the default config of EleutherAI/lambada_openai."""
    folder.mkdir(parents=True)
    rows = [json.dumps({"text": text}) for text in texts]
    (folder / "data").mkdir()
    (folder / "data" / "lambada_test_en.jsonl").write_text("\n".join(rows) + "\n")
    files = [{"split": "test", "path": "data/lambada_test_en.jsonl"}]
    card = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{card}---\n")
    return folder
