"""Check that training sees what is deployed: compare the weights and logits of an arm's training and int4 export.

Every stored weight must represent Q(W + s·BA), recomputed from the adapter and the folder in which training started, on
the grids that training learned, or else on those of that folder if it has any. A weight that does not is an error, as
is a linear that was not exported as it was trained in int4. The logits of the training's forward pass and of the
deployed model are compared on a few training texts. With qat_target `merged` they agree up to rounding; with `base` the
relative difference says how far what was trained is from what is shipped.

    python scripts/check_parity.py --model resources/models/demo --adapter results/demo/qat/adapter \\
        --checkpoint results/demo/qat-int4/checkpoint --texts results/demo/train.parquet \\
        --output results/demo/qat-int4/parity.json
"""

import argparse
from pathlib import Path

import pyarrow.parquet as pq
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from int4_qat.checkpoint import adapters, architecture, loading, weight_files, weight_writer
from int4_qat.engines import inference
from int4_qat.quantization import exports, grids, mismatch, record, schemes
from int4_qat.quantization.int4 import AnyGrid
from int4_qat.results.schema.parity import Parity
from int4_qat.system import devices, errors, files, parallel, rooms
from int4_qat.tokenizer import tokenization
from int4_qat.training import qat, start

TEXTS = 4  # that are run one at a time, so that the logits of a large vocabulary fit in memory
TOKENS = 256  # of each text, at most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder with the model before the training")
    parser.add_argument("--adapter", required=True, type=Path, help="folder with the peft adapter and qat.json")
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with int4 weights and manifest.json")
    parser.add_argument("--texts", required=True, type=Path, help="parquet file with the column text")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to run on")
    parser.add_argument("--gpus", default=1, type=int, help="number of GPUs, for a model that is too large for one")
    parser.add_argument("--output", required=True, type=Path, help="JSON file for the comparison")
    arguments = parser.parse_args()
    devices.claim(arguments.device, arguments.gpus)
    training = files.read_json(arguments.adapter / record.RECORD)
    manifest = files.read_json(arguments.checkpoint / "manifest.json")
    given = grids.read(grids.of_training(arguments.adapter, arguments.model))
    mismatch.refuse_mismatch(arguments.adapter, manifest, given)
    differing = differing_weights(arguments.model, arguments.adapter, arguments.checkpoint, manifest, given)
    weight_writer.refuse_differences(arguments.checkpoint, differing, "what training saw")
    batch = first_tokens(arguments.texts, arguments.model)
    dtype = architecture.DTYPES[training["dtype"]]
    trained = logits(training_model(arguments.model, arguments.adapter, training, arguments.device), batch)
    devices.release()
    deployed = logits(inference.load_model(arguments.checkpoint, dtype, arguments.device), batch)
    difference = relative_difference(trained, deployed)
    files.write_json(
        arguments.output,
        Parity(
            weights_that_differ=sum(differing.values()),
            relative_logit_difference=difference,
            scheme=training["scheme"],
            target=training["target"],
            texts=len(batch),
            tokens=sum(text.numel() for text in batch),
            dtype=training["dtype"],
            device=devices.name(arguments.device),
        ),
    )
    print(f"{sum(differing.values())} weights differ; the relative difference of the logits is {difference:.2e}")


def differing_weights(
    model: Path, adapter: Path, checkpoint: Path, manifest: dict, given: dict[str, AnyGrid]
) -> dict[str, int]:
    """Return how many weights of each tensor differ from the expected ones.

    These follow from the adapter and the folder in which training started.
    """
    base, sources, names = architecture.open_checkpoint(model)
    targets = weight_files.stored_tensors(checkpoint)
    pairs = adapters.read(base, adapter)
    scheme, layout = schemes.of_words(manifest["scheme"]), rooms.load(rooms.FORMATS, manifest["format"])
    method = rooms.load(rooms.METHODS, manifest["method"])
    quantized = {f"{layer['name']}.weight" for layer in manifest["layers"] if layer["quantized"]}

    def compare(key: str) -> int:
        name, source = names[key], sources[key]
        if name in quantized:
            blocks = adapters.merged_blocks(source, pairs[name]) if name in pairs else exports.row_blocks(source)
            grid = given.get(name.removesuffix(".weight"))
            expected = exports.quantize(blocks, scheme, grid, method)
            return exports.differing(expected, layout.reader(key, targets))
        if name in pairs:
            return adapters.differing(source, pairs[name], targets[key])
        return weight_files.differing(source, targets[key])

    return parallel.in_processes(compare, sources, "compare")


def training_model(model: Path, adapter: Path, training: dict, device: str) -> PreTrainedModel:
    """Return the model as it was after the last step of its training."""
    base = loading.load(model, architecture.DTYPES[training["dtype"]], device)
    adapted = PeftModel.from_pretrained(base, adapter)
    if training["scheme"] is not None:
        scheme, ignore = training["scheme"], training["ignore"]
        given = grids.read(adapter) or start.grids_for(model, scheme, ignore)
        qat.fake_quantize_linears(adapted, training["target"], schemes.of_words(scheme), ignore, given)
    return adapted.eval()


def first_tokens(texts: Path, model: Path) -> list[torch.Tensor]:
    """Return the first tokens of the first texts, each (1, tokens)."""
    rows = next(pq.ParquetFile(texts).iter_batches(TEXTS, columns=["text"]))["text"].to_pylist()
    tokenizer = tokenization.load_tokenizer(model)
    encoded = tokenization.encode(tokenizer, rows, truncation=True, max_length=TOKENS)
    return [torch.tensor([tokens]) for tokens in encoded]


@torch.no_grad()
def logits(model: PreTrainedModel, batch: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the logits of each text on the CPU, (tokens, vocabulary); in bf16 a GPU autocasts as in training."""
    device = next(model.parameters()).device
    casts = device.type == "cuda" and model.dtype == torch.bfloat16
    with torch.autocast(device.type, torch.bfloat16, enabled=casts):
        return [model(input_ids=tokens.to(device)).logits[0].cpu() for tokens in batch]


def relative_difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Return |found - expected| / |expected| in the Euclidean norm over all logits."""

    def norm(tensors: list[torch.Tensor]) -> float:
        return torch.stack([torch.linalg.vector_norm(tensor.float()) for tensor in tensors]).norm().item()

    return norm([mine - other for mine, other in zip(found, expected, strict=True)]) / norm(expected)


if __name__ == "__main__":
    errors.run(main)
