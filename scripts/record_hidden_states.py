"""Let a bf16 checkpoint read held-out texts once, for all that is compared with it: see evaluate_divergence.

    python scripts/record_hidden_states.py --checkpoint results/demo/base-bf16/checkpoint \\
        --texts resources/texts/wikitext.txt --context 1024 --dtype float32 --output results/demo/base-bf16/states
"""

import argparse
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from int4_qat.checkpoint import architecture
from int4_qat.engines import inference
from int4_qat.evaluation import divergence, hidden_states
from int4_qat.evaluation.heads import Head
from int4_qat.results.schema.divergence import Protocol
from int4_qat.system import devices, errors, files
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization

WINDOWS = 2  # the fewest that show how much windows differ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder in bf16")
    parser.add_argument("--texts", required=True, type=Path, nargs="+", help="text files, each named after its text")
    parser.add_argument("--context", required=True, type=int, help="tokens of a window, bos included")
    parser.add_argument("--limit", type=int, help="tokens of each text; all if left out")
    parser.add_argument("--dtype", required=True, choices=list(architecture.DTYPES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", required=True, type=Path, help="folder, a file for each text")
    arguments = parser.parse_args()
    devices.claim(arguments.device)
    refuse_long_context(arguments.checkpoint, arguments.context)
    tokenizer = tokenization.load_tokenizer(arguments.checkpoint)
    windows = {path: windows_of(tokenizer, path, arguments.context, arguments.limit) for path in arguments.texts}
    model = inference.load_model(arguments.checkpoint, architecture.DTYPES[arguments.dtype], arguments.device)
    head = Head(model).digest()
    with files.whole(arguments.output) as folder:
        folder.mkdir()
        for path, found in windows.items():
            protocol = Protocol(
                context=arguments.context,
                limit=arguments.limit,
                bos=tokenizer.bos_token if tokenization.adds_bos(tokenizer) else None,
                dtype=arguments.dtype,
                sha256=files.sha256(path),
            )
            hidden_states.record(model, found, protocol, head, folder / f"{path.stem}{hidden_states.SUFFIX}")


def refuse_long_context(checkpoint: Path, context: int) -> None:
    """Raise InputError if a model was not made for so many tokens."""
    config = architecture.read_config(checkpoint).get_text_config(decoder=True)
    longest = getattr(config, "max_position_embeddings", None)
    if longest and context > longest:
        raise InputError(f"evaluation.divergence.context: expected at most {longest}, the model's own, found {context}")


def windows_of(tokenizer: PreTrainedTokenizerBase, path: Path, context: int, limit: int | None) -> list[list[int]]:
    """Return the windows of a text file, as token ids; raise InputError if they are too few for an interval."""
    text = path.read_bytes().decode("utf-8")  # with the ends of its lines as they are
    try:
        found = divergence.windows(tokenizer, text, context, limit)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if len(found) < WINDOWS:
        of = f"{context} tokens" if limit is None else f"{context} tokens in the first {limit}"
        raise InputError(f"{path}: expected {WINDOWS} windows of {of} or more, for intervals, found {len(found)}")
    return found


if __name__ == "__main__":
    errors.run(main)
