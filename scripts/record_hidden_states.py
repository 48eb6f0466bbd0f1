"""Run a model in bf16 on held-out texts once, and measure how far its predictions of them are from the base's.

Its last hidden states are kept for the quantized variants that are compared with it; evaluate_divergence finds the same
figures for these. The base itself, without --base, is compared with itself.

    python scripts/record_hidden_states.py --checkpoint results/demo/lora-bf16/checkpoint \\
        --base results/demo/base-bf16/checkpoint --base-states results/demo/base-bf16/states \\
        --texts resources/texts/families.txt --context 128 --dtype float32 --output results/demo/lora-bf16/states \\
        --report results/demo/lora-bf16/divergence.json --samples results/demo/lora-bf16/divergence_samples.parquet
"""

import argparse
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from int4_qat.checkpoint import architecture
from int4_qat.checkpoint.heads import Head
from int4_qat.engines import inference
from int4_qat.evaluation import comparison, divergence, hidden_states
from int4_qat.evaluation.comparison import Reader, Variant
from int4_qat.evaluation.hidden_states import Recorded
from int4_qat.results import divergence_report
from int4_qat.results.schema.divergence import Protocol
from int4_qat.system import devices, errors, files
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization

WINDOWS = 2  # the minimum that shows how much windows differ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with the checkpoint, in bf16")
    parser.add_argument("--base", type=Path, help="folder with the base model, in bf16; omitted for the base itself")
    parser.add_argument("--base-states", type=Path, help="output of record_hidden_states for the base")
    parser.add_argument("--texts", required=True, type=Path, nargs="+", help="text files, each named after its text")
    parser.add_argument("--context", required=True, type=int, help="number of tokens per window, bos included")
    parser.add_argument("--limit", type=int, help="number of tokens per text; all if omitted")
    parser.add_argument("--dtype", required=True, choices=list(architecture.DTYPES), help="number format of the model")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to run on")
    parser.add_argument("--gpus", default=1, type=int, help="number of GPUs, for a model that is too large for one")
    parser.add_argument("--output", required=True, type=Path, help="folder for the hidden states, one file per text")
    parser.add_argument("--report", required=True, type=Path, help="path of divergence.json")
    parser.add_argument("--samples", required=True, type=Path, help="parquet file with one row per window")
    arguments = parser.parse_args()
    devices.claim(arguments.device, arguments.gpus)
    refuse_half_a_base(arguments.base, arguments.base_states)
    if len({path.stem for path in arguments.texts}) < len(arguments.texts):
        raise InputError(f"--texts: expected files with different names, found {' '.join(map(str, arguments.texts))}")
    config = architecture.read_config(arguments.checkpoint)
    architecture.refuse_long_text(config, arguments.context, "evaluation.divergence.context")
    tokenizer = tokenization.load_tokenizer(arguments.checkpoint)
    windows = {path: windows_of(tokenizer, path, arguments.context, arguments.limit) for path in arguments.texts}
    model = inference.load_model(arguments.checkpoint, architecture.DTYPES[arguments.dtype], arguments.device)
    head = Head(model)
    digest = head.digest()
    own = Reader(texts_of(arguments, tokenizer, windows, digest), head)
    base = base_of(arguments, own, digest)
    with files.whole(arguments.output) as folder:
        folder.mkdir()
        for text in own.texts.values():
            hidden_states.record(model, text, folder / text.path.name)
    rows = comparison.in_bf16(own, base, arguments.device)
    protocol = {name: text.protocol for name, text in base.texts.items()}
    device = devices.name(arguments.device)
    found = divergence_report.make(rows, protocol, same_head=own.head is base.head, int4_path=None, device=device)
    divergence_report.write(found, rows, arguments.report, arguments.samples)


def refuse_half_a_base(base: Path | None, states: Path | None) -> None:
    """Raise InputError unless both the base and its states are given, or neither."""
    if (base is None) != (states is None):
        given, missing = ("--base", "--base-states") if states is None else ("--base-states", "--base")
        raise InputError(f"{missing}: expected a folder, since {given} is given, found none")


def windows_of(tokenizer: PreTrainedTokenizerBase, path: Path, context: int, limit: int | None) -> list[list[int]]:
    """Return the windows of a text file, as token ids.

    Raise InputError if there is no such text, or if its windows are too few for an interval.
    """
    try:
        text = path.read_bytes().decode("utf-8")  # keeps the line endings as they are
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a text in UTF-8, found none ({error})") from None
    try:
        found = divergence.windows(tokenizer, text, context, limit)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if len(found) < WINDOWS:
        of = f"{context} tokens" if limit is None else f"{context} tokens in the first {limit}"
        raise InputError(f"{path}: expected {WINDOWS} windows of {of} or more, for intervals, found {len(found)}")
    return found


def base_of(arguments: argparse.Namespace, own: Reader, digest: str) -> Reader:
    """Return the base, which is the model itself or has read the same texts; digest is that of the model's head.

    Raise InputError if the base has read other texts, or has another vocabulary.
    """
    if arguments.base is None:
        return own
    texts = hidden_states.recorded(arguments.base_states)
    hidden_states.refuse_differences(texts, own.texts)
    variant = Variant(arguments.checkpoint, own.head, digest, arguments.device)
    return comparison.reader(arguments.base, texts, variant)


def texts_of(
    arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, windows: dict[Path, list[list[int]]], head: str
) -> dict[str, Recorded]:
    """Return, by name, what is recorded of each text besides the states; head is the digest of the model's head."""
    bos = tokenizer.bos_token if tokenization.adds_bos(tokenizer) else None
    found = {}
    for path in sorted(windows, key=lambda path: path.stem):
        protocol = Protocol(
            context=arguments.context,
            limit=arguments.limit,
            bos=bos,
            dtype=arguments.dtype,
            sha256=files.sha256(path),
        )
        place = arguments.output / f"{path.stem}{hidden_states.SUFFIX}"
        found[path.stem] = Recorded(place, protocol, head, windows[path])
    return found


if __name__ == "__main__":
    errors.run(main)
