"""Merge an adapter into its base model, as a standard Hugging Face folder in bf16 safetensors.

The program goes through the weight files block by block, so it needs the memory of its libraries and not the model's.
It then reads the output back and compares it. Everything that is not weights (tokenizer, processor, chat template,
generation config) is the base model's, file by file. The grids that training learned, or else those of a calibrated
model, are copied too, for the export to round on.

    python scripts/merge.py --model resources/models/demo --adapter results/demo/qat/adapter \\
        --output results/demo/qat-bf16/checkpoint
"""

import argparse
from pathlib import Path

from int4_qat.checkpoint import adapters, architecture, weight_files, weight_writer
from int4_qat.quantization import grids, record
from int4_qat.system import errors, files, parallel
from int4_qat.system.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder with the model before the training")
    parser.add_argument("--adapter", required=True, type=Path, help="folder with the peft adapter")
    parser.add_argument("--output", required=True, type=Path, help="folder for the merged model")
    arguments = parser.parse_args()
    model, sources, names = architecture.open_checkpoint(arguments.model)
    config = model.config
    pairs = adapters.read(model, arguments.adapter)
    unstored = sorted(pairs.keys() - set(names.values()))
    if unstored:
        raise InputError(f"{arguments.adapter}: expected an adapter of {arguments.model}, which has no {unstored[0]}")

    def write(key: str) -> None:
        if names[key] in pairs:
            for rows, values in adapters.merged_blocks(sources[key], pairs[names[key]]):
                targets[key].write_rows(rows, values)
        else:
            weight_writer.copy(sources[key], targets[key])

    def compare(key: str) -> int:
        if names[key] in pairs:
            return adapters.differing(sources[key], pairs[names[key]], targets[key])
        return weight_files.differing(sources[key], targets[key])

    with files.whole(arguments.output) as folder:
        targets = weight_writer.create(folder, architecture.stored_as(sources))
        parallel.in_processes(write, sources, "merge")
        weight_writer.refuse_differences(folder, parallel.in_processes(compare, sources, "compare"))
        config.save_pretrained(folder)
        record.copy_record(arguments.adapter, folder)
        grids.copy(grids.of_training(arguments.adapter, arguments.model), folder)
        architecture.copy_companions(arguments.model, folder)
    print(f"merged {len(pairs)} adapters into {len(sources)} tensors; read back, 0 weights differ")


if __name__ == "__main__":
    errors.run(main)
