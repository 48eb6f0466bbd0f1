"""Calibrate a bf16 checkpoint for int4: find weights and grids by a method that uses texts.

The result is a plain checkpoint in bf16 with grids next to it. It is meant to be rounded on these grids by quantize, or
to be trained further on them. Texts are the formatted training questions and general text, never a text that the
results are measured on. One GPU holds the whole model; one layer at a time is calibrated.

    python scripts/calibrate.py --checkpoint results/demo/base-bf16/checkpoint --method gptq \\
        --scheme '{"type": "int", "num_bits": 4, "symmetric": false, "strategy": "group", "group_size": 64,
        "zero_point": "float"}' --texts results/demo/train.parquet --samples 32 --length 128 --batch-size 8 --seed 0 \\
        --dtype float32 --output results/demo/base-gptq/calibrated
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

from int4_qat.checkpoint import architecture, loading, weight_files, weight_writer
from int4_qat.checkpoint.blocks import STORAGE_DTYPE
from int4_qat.quantization import calibration, calibration_texts, grids, linears, record, schemes
from int4_qat.quantization.int4 import Grid
from int4_qat.system import devices, errors, files, parallel, rooms
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with the checkpoint, in bf16")
    parser.add_argument("--scheme", required=True, type=json.loads, help="scheme of the quantization, as JSON")
    parser.add_argument("--ignore", nargs="*", default=[], help="names, or parts of names, of modules kept in bf16")
    parser.add_argument("--method", required=True, choices=rooms.words(rooms.METHODS), help="method to find the grids")
    parser.add_argument(
        "--texts",
        required=True,
        type=Path,
        nargs="+",
        help="files to calibrate on: .txt, .jsonl with conversations, or parquet with the column text",
    )
    parser.add_argument("--samples", required=True, type=int, help="number of windows, an equal share from each file")
    parser.add_argument("--length", required=True, type=int, help="number of tokens per window, bos included")
    parser.add_argument("--batch-size", required=True, type=int, help="number of windows in a layer at once")
    parser.add_argument("--seed", required=True, type=int, help="seed that decides which windows are drawn")
    parser.add_argument("--dtype", required=True, choices=list(architecture.DTYPES), help="number format of the model")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to run on")
    parser.add_argument("--output", required=True, type=Path, help="folder for the calibrated model")
    arguments = parser.parse_args()
    devices.claim(arguments.device)
    scheme, method = schemes.of_argument(arguments.scheme), rooms.load(rooms.METHODS, arguments.method)
    refuse_idle_method(arguments.method, method.NEEDS)
    refuse_made_for_int4(arguments.checkpoint)
    meta, sources, names = architecture.open_checkpoint(arguments.checkpoint)
    architecture.refuse_long_text(meta.config, arguments.length, "calibration.length")
    layers = linears.choose(meta, set(names.values()), scheme, arguments.ignore)
    quantized = [layer["name"] for layer in layers if layer["quantized"]]
    tokenizer = tokenization.load_tokenizer(arguments.checkpoint)
    files.refuse_folder(arguments.output)
    texts = calibration_texts.read(arguments.texts, tokenizer, arguments.samples, arguments.length, arguments.seed)
    model = loading.load(arguments.checkpoint, architecture.DTYPES[arguments.dtype], arguments.device)
    found = calibration.calibrate(model, texts, quantized, method.calibrate, scheme, arguments.batch_size)
    rounded = sorted(calibration.layers_of(model, quantized)[1])
    write(arguments, model, sources, names, found, rounded)
    counts = f"calibrated {len(found) - len(rounded)} linears by {arguments.method} on {texts.numel()} tokens"
    print(f"{counts}, rounded {len(rounded)} outside the layers{peak(arguments.device)}")


def refuse_idle_method(word: str, needs: tuple[str, ...]) -> None:
    """Raise InputError for a method that needs no texts."""
    if not needs:
        raise InputError(
            f"--method: expected one that calibrates on texts, found {word}, which needs none; run quantize"
        )


def refuse_made_for_int4(checkpoint: Path) -> None:
    """Raise InputError for weights that were already calibrated or trained for int4."""
    if (checkpoint / record.CALIBRATION).exists() or record.is_trained_in_int4(checkpoint):
        raise InputError(
            f"{checkpoint}: expected original weights, found some that were calibrated or trained for int4"
        )


def write(
    arguments: argparse.Namespace,
    model: transformers.PreTrainedModel,
    sources: dict[str, weight_files.StoredTensor],
    names: dict[str, str],
    found: dict[str, Grid],
    rounded: list[str],
) -> None:
    """Write the output folder: the calibrated weights, their grids, and a record of how both were made."""
    parameters = dict(model.named_parameters())

    def put(key: str) -> None:
        if names[key] in parameters:
            targets[key].write(parameters[names[key]].data.to(STORAGE_DTYPE).cpu())
        else:
            weight_writer.copy(sources[key], targets[key])

    with files.whole(arguments.output) as folder:
        targets = weight_writer.create(folder, architecture.stored_as(sources))
        parallel.in_threads(put, sources, "write")
        model.config.save_pretrained(folder)
        architecture.copy_companions(arguments.checkpoint, folder)
        grids.write(folder, found)
        files.write_json(folder / record.CALIBRATION, describe(arguments) | {"rounded": rounded})


def describe(arguments: argparse.Namespace) -> dict:
    """Return the record of how the weights and the grids were made."""
    return {
        "method": arguments.method,
        "scheme": schemes.of_words(arguments.scheme).words,
        "ignore": sorted(arguments.ignore),
        "texts": {str(path): files.sha256(path) for path in arguments.texts},
        "samples": arguments.samples,
        "length": arguments.length,
        "batch_size": arguments.batch_size,
        "seed": arguments.seed,
        "dtype": arguments.dtype,
        "device": devices.name(arguments.device),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def peak(device: str) -> str:
    """Return the peak GPU memory as text for the log, empty on a CPU."""
    return f"; peak GPU memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if device == "cuda" else ""


if __name__ == "__main__":
    errors.run(main)
