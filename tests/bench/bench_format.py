"""Compare format_mmlu with the card's own code (two datasets.map passes) on 99,842 rows, in one run: `make bench`.

The rows are those of MMLU_DIR's test split if it is set, and invented otherwise, repeated to the size of the real
auxiliary_train. The benchmark prints the median seconds of each and the ratio, and fails if the texts differ.
"""

import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import download_mmlu
import format_mmlu
from int4_qat.data import mmlu_parquet, question_files
from int4_qat.standin import standin
from int4_qat.tokenizer import training_texts

ROWS, ROUNDS = 99_842, 3


def main() -> None:
    rows = some_rows()
    table = pa.Table.from_pylist((rows * (ROWS // len(rows) + 1))[:ROWS], mmlu_parquet.SCHEMA)
    tokenizer = standin.build_tokenizer(["user\nmodel\n"])
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "rows.parquet", Path(folder) / "texts.parquet"
        pq.write_table(table, source)
        ours, cards = [], []
        for _ in range(ROUNDS):
            ours.append(seconds(lambda: format_mmlu.format_split(source, tokenizer, output)))
            cards.append(seconds(lambda: card_format(source, tokenizer, folder)))
        same = pq.read_table(output)["text"].to_pylist() == card_format(source, tokenizer, folder)["text"][:]
    ours, cards = statistics.median(ours), statistics.median(cards)
    print(
        f"{ROWS} rows: format_mmlu {ours:.2f} s, the card's code {cards:.2f} s, ratio {cards / ours:.1f}; "
        f"same texts: {same}"
    )
    sys.exit(not same)


def some_rows() -> list[dict]:
    if os.environ.get("MMLU_DIR"):
        found = question_files.find_files(Path(os.environ["MMLU_DIR"]), ["test"])
        return [row for _, row in question_files.rows_of(found["test"], download_mmlu.read)]
    facts = standin.invent_families(12, 20, random.Random(0))
    return [question.row() for question in standin.ask(facts, ["anatomy"], {"test": 5_000}, 0)["test"]]


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def card_format(source: Path, tokenizer, cache: str) -> datasets.Dataset:
    """Return the texts as the card makes them: one conversation per row, then the chat template over batches."""

    def conversation(row: dict) -> dict:
        user = f"{training_texts.QUESTION_LEAD}{row['question']}\n\nChoices:\n"
        user += "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
        answer = f"The correct answer is {'ABCD'[row['answer']]}."
        return {"conversations": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]}

    def texts(batch: dict) -> dict:
        rendered = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in batch["conversations"]]
        return {"text": [text.removeprefix("<bos>") for text in rendered]}

    rows = datasets.Dataset.from_parquet(str(source), cache_dir=cache)
    rows = rows.map(conversation, remove_columns=rows.column_names, load_from_cache_file=False)
    return rows.map(texts, batched=True, load_from_cache_file=False)


if __name__ == "__main__":
    main()
