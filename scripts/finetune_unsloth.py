"""finetune.py with unsloth's model, fake quantization and trainer, as on the card: the same options and outputs.

A program of its own, since unsloth patches trl, transformers and peft only if it is imported before them. On a GPU.

    python scripts/finetune_unsloth.py --model resources/models/gemma-3-12b-it \\
        --texts results/gemma-3-12b-it/train.parquet \\
        --recipe '{"r": 8, ...}' --device cuda --checkpoints /tmp/checkpoints \\
        --adapter results/gemma-3-12b-it/qat/adapter --log-table results/gemma-3-12b-it/qat/training.csv
"""

from int4_qat import errors, unsloth_backend


def main() -> None:
    unsloth_backend.import_unsloth()
    import finetune

    finetune.main(unsloth_backend)


if __name__ == "__main__":
    errors.run(main)
