"""Quantize a bf16 checkpoint: find codes by a method, and store them in the layout of a format.

Every linear that a text passes through is quantized, except for the output head, those that `ignore` names, and those
that the group size does not divide. manifest.json says of each linear whether it was quantized and why, and names all
other matrices. The program goes through the weight files block by block, so it needs the memory of its libraries and
not the model's. The output is read back and compared, weight by weight, with what the method gave, before it is moved
into place.

    python scripts/quantize.py --checkpoint results/demo/qat-bf16/checkpoint --method rtn --format torchao-plain \\
        --scheme '{"type": "int", "num_bits": 4, "symmetric": false, "strategy": "group", "group_size": 64,
        "zero_point": "float"}' --output results/demo/qat-int4/checkpoint
"""

import argparse
import functools
import json
from collections.abc import Iterator
from pathlib import Path

from int4_qat.checkpoint import architecture, weight_files, weight_writer
from int4_qat.quantization import exports, grids, linears, mismatch, schemes
from int4_qat.system import errors, files, rooms
from int4_qat.system.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with the checkpoint, in bf16")
    parser.add_argument("--scheme", required=True, type=json.loads, help="scheme of the quantization, as JSON")
    parser.add_argument("--ignore", nargs="*", default=[], help="names, or parts of names, of modules kept in bf16")
    parser.add_argument("--method", required=True, choices=rooms.words(rooms.METHODS), help="method to find the codes")
    parser.add_argument("--format", required=True, choices=rooms.words(rooms.FORMATS), help="format of the weights")
    parser.add_argument("--output", required=True, type=Path, help="folder for the quantized model and manifest.json")
    arguments = parser.parse_args()
    scheme, layout = schemes.of_argument(arguments.scheme), rooms.load(rooms.FORMATS, arguments.format)
    method = rooms.load(rooms.METHODS, arguments.method)
    if needed := layout.misfit(scheme):
        raise InputError(f"quantizations: expected {needed}, as {arguments.format} requires, found {scheme}")
    model, sources, names = architecture.open_checkpoint(arguments.checkpoint)
    layers = linears.choose(model, set(names.values()), scheme, arguments.ignore)
    chosen = {"scheme": scheme.words, "layers": layers, "others": linears.others(model)}
    given = grids.read(arguments.checkpoint)
    calibrated_by = arguments.method if method.NEEDS else None
    mismatch.refuse_uncalibrated(arguments.checkpoint, calibrated_by, chosen, given)
    mismatch.refuse_mismatch(arguments.checkpoint, chosen, given)
    quantized = {f"{layer['name']}.weight" for layer in layers if layer["quantized"]}
    unquantized = architecture.stored_as(sources)
    plan, metadata = layout.lay_out(unquantized, names, quantized, scheme)
    kept = {key: source for key, source in sources.items() if names[key] not in quantized}

    def rounded(key: str) -> Iterator[exports.QuantizedBlock]:
        blocks, grid = exports.row_blocks(sources[key]), given.get(names[key].removesuffix(".weight"))
        return exports.quantize(blocks, scheme, grid, method)

    with files.whole(arguments.output) as folder:
        targets = weight_writer.create(folder, plan, metadata)
        in_int4 = {key: functools.partial(rounded, key) for key in sources if key not in kept}
        differing = exports.fill(layout, targets, kept, in_int4)
        weight_writer.refuse_differences(folder, differing)
        layout.configure(model.config, layers, names, scheme)
        model.config.save_pretrained(folder)
        architecture.copy_companions(arguments.checkpoint, folder)
        weights = {key: unquantized[key] for key in in_int4}
        chosen["layers"] = exports.with_bytes_after(layers, layout, weights, names, scheme)
        files.write_json(folder / "manifest.json", manifest(arguments, chosen, folder, sum(differing.values())))
    print(f"stored {len(quantized)} of {len(layers)} linears in int4; read back, 0 weights differ")


def manifest(arguments: argparse.Namespace, chosen: dict, folder: Path, differing: int) -> dict:
    """Return what was quantized, what was not, and the sizes of the weight files before and after."""
    in_int4 = sum(layer["bytes_before"] for layer in chosen["layers"] if layer["quantized"])
    before = weight_files.file_bytes(arguments.checkpoint)
    return {
        **chosen,
        "ignore": arguments.ignore,
        "method": arguments.method,
        "format": arguments.format,
        "share_in_int4": in_int4 / before,
        "bytes_before": before,
        "bytes_after": weight_files.file_bytes(folder),
        "weights_that_differ": differing,
    }


if __name__ == "__main__":
    errors.run(main)
