"""Write the training texts: every question with its answer, in the chat template of the model's own tokenizer.

The texts match the recipe's byte for byte. Rows sampled across the data are compared with the output of the chat
template itself. A template that does more than put fixed text around each message is rendered row by row, which is
slow; the log says so.

    python scripts/format_mmlu.py --mmlu resources/mmlu_train/auxiliary_train.parquet \\
        --tokenizer resources/models/demo --output results/demo/train.parquet
"""

import argparse
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from int4_qat.data import mmlu_parquet, parquet_files
from int4_qat.system import errors, files
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization, training_texts

SCHEMA = pa.schema([("text", pa.string()), ("subject", pa.string())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mmlu", required=True, type=Path, help="parquet with question, subject, choices, answer")
    parser.add_argument("--tokenizer", required=True, type=Path, help="folder of a model with a chat template")
    parser.add_argument("--output", required=True, type=Path, help="parquet file with the columns text and subject")
    arguments = parser.parse_args()
    tokenizer = tokenization.load_as_is(arguments.tokenizer)
    if tokenizer.chat_template is None:
        raise InputError(f"{arguments.tokenizer}: expected a tokenizer with a chat template, found one without")
    format_split(arguments.mmlu, tokenizer, arguments.output)


def format_split(source: Path, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Stream `source` into `output`, a batch of rows at a time."""
    template = training_texts.read_template(tokenizer)
    rows = parquet_files.open_file(source, mmlu_parquet.SCHEMA.names).metadata.num_rows
    progress = tqdm(total=rows, unit=" rows", desc="format", mininterval=1)
    with files.whole(output) as unfinished, pq.ParquetWriter(unfinished, SCHEMA) as writer:
        for batch in parquet_files.read_batches(source, mmlu_parquet.SCHEMA.names):
            user, assistant = training_texts.messages(batch)
            if template and not training_texts.agrees(template, tokenizer, user, assistant):
                print("the chat template changes its messages: rendering row by row", file=sys.stderr)
                template = None
            if template:
                text = training_texts.join(template, user, assistant)
            else:
                text = training_texts.render_rows(tokenizer, user, assistant)
            writer.write_batch(pa.record_batch([text, batch["subject"]], schema=SCHEMA))
            progress.update(batch.num_rows)


if __name__ == "__main__":
    errors.run(main)
