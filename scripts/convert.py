"""Write a quantized folder in another format, with the same codes, scales and zero points: nothing is rounded again.

The program takes a folder written by quantize.py, with its manifest.json. The output is read back and compared before
it is moved into place. Converting the result back into the first format restores the first folder byte for byte.

    python scripts/convert.py --checkpoint results/demo/qad-w4a16/checkpoint --format compressed-tensors \\
        --output /tmp/qad-w4a16-vllm
"""

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path

import torch

from int4_qat.checkpoint import architecture, blocks, weight_files, weight_writer
from int4_qat.quantization import exports, schemes
from int4_qat.system import errors, files, rooms
from int4_qat.system.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with int4 weights and manifest.json")
    parser.add_argument("--format", required=True, choices=rooms.words(rooms.FORMATS), help="format of the weights")
    parser.add_argument("--output", required=True, type=Path, help="folder for the converted checkpoint")
    arguments = parser.parse_args()
    files.refuse_folder(arguments.output)
    manifest = files.read_json(arguments.checkpoint / "manifest.json")
    scheme = schemes.of_words(manifest["scheme"])
    source, target = (rooms.load(rooms.FORMATS, word) for word in (manifest["format"], arguments.format))
    if needed := target.misfit(scheme):
        raise InputError(f"{arguments.checkpoint}: expected {needed}, as {arguments.format} requires, found {scheme}")
    model = architecture.without_weights(arguments.checkpoint)
    stored = weight_files.stored_tensors(arguments.checkpoint)
    keys = sorted({source.weight_of(part) for part in stored})
    names = {key: name or key for key, name in architecture.renamed(model, keys).items()}
    shapes = {f"{layer['name']}.weight": layer["shape"] for layer in manifest["layers"] if layer["quantized"]}
    kept = {key: stored[key] for key in keys if names[key] not in shapes}
    in_int4 = {key: shapes[names[key]] for key in keys if key not in kept}
    weights = {key: torch.empty(shape, dtype=blocks.STORAGE_DTYPE, device="meta") for key, shape in in_int4.items()}
    plan = architecture.stored_as(kept) | weights
    laid_out, metadata = target.lay_out({key: plan[key] for key in keys}, names, shapes.keys(), scheme)

    def read(key: str) -> Iterator[exports.QuantizedBlock]:
        of_rows = source.reader(key, stored)
        return ((rows, of_rows(rows)) for rows in blocks.row_blocks(*in_int4[key]))

    with files.whole(arguments.output) as folder:
        targets = weight_writer.create(folder, laid_out, metadata)
        differing = exports.fill(target, targets, kept, {key: functools.partial(read, key) for key in in_int4})
        weight_writer.refuse_differences(folder, differing)
        target.configure(model.config, manifest["layers"], names, scheme)
        model.config.save_pretrained(folder)
        architecture.copy_companions(arguments.checkpoint, folder)
        layers = exports.with_bytes_after(manifest["layers"], target, weights, names, scheme)
        changes = {"layers": layers, "format": arguments.format, "bytes_after": weight_files.file_bytes(folder)}
        files.write_json(folder / "manifest.json", manifest | changes)
    print(f"stored {len(in_int4)} linears in {arguments.format}; read back, 0 weights differ")


if __name__ == "__main__":
    errors.run(main)
