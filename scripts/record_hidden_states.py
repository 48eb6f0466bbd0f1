"""Let a bf16 checkpoint read held-out texts once, for all that is compared with it: see evaluate_divergence.

    python scripts/record_hidden_states.py --checkpoint results/demo/base-bf16/checkpoint \\
        --texts resources/texts/wikitext.txt --context 1024 --dtype float32 --output results/demo/base-bf16/states
"""

import argparse
from pathlib import Path

from int4_qat.checkpoint import architecture
from int4_qat.engines import inference
from int4_qat.evaluation import divergence, hidden_states
from int4_qat.system import devices, errors, files
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization


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
    windows = {
        path: divergence.windows(tokenizer, path.read_text(encoding="utf-8"), arguments.context, arguments.limit)
        for path in arguments.texts
    }
    model = inference.load_model(arguments.checkpoint, architecture.DTYPES[arguments.dtype], arguments.device)
    with files.whole(arguments.output) as folder:
        folder.mkdir()
        for path, found in windows.items():
            protocol = {
                "context": arguments.context,
                "limit": arguments.limit,
                "bos": tokenizer.bos_token if tokenization.adds_bos(tokenizer) else None,
                "dtype": arguments.dtype,
                "sha256": files.sha256(path),
            }
            hidden_states.record(model, found, protocol, folder / f"{path.stem}{hidden_states.SUFFIX}")


def refuse_long_context(checkpoint: Path, context: int) -> None:
    """Raise InputError if a model was not made for so many tokens."""
    config = architecture.read_config(checkpoint).get_text_config(decoder=True)
    longest = getattr(config, "max_position_embeddings", None)
    if longest and context > longest:
        raise InputError(f"evaluation.divergence.context: expected at most {longest}, the model's own, found {context}")


if __name__ == "__main__":
    errors.run(main)
