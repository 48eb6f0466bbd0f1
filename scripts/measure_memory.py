"""Measure what a checkpoint needs: peak memory while it generates, weights in memory, bytes on disk.

On a GPU the peak is the card's measure, max_memory_reserved after 128 generated tokens. On a CPU it is the peak
resident memory of the process above what it held before the model was loaded. A CPU has no int4 kernels here;
`dequantized` says that the weights in memory were not those on disk.

    python scripts/measure_memory.py --checkpoint results/demo/qat-int4/checkpoint --dtype float32 \\
        --max-new-tokens 128 --output results/demo/qat-int4/memory.json
"""

import argparse
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import torch
from transformers import Cache, PreTrainedModel

from int4_qat.checkpoint import architecture, weight_files
from int4_qat.engines import inference
from int4_qat.results.schema.memory import Memory, Prediction
from int4_qat.system import devices, errors, files
from int4_qat.tokenizer import tokenization

PROMPT = "Hey, are you conscious? Can you talk to me?"


class PeakResidentMemory:
    """The peak resident memory of this process above its value at the start, watched by a thread."""

    def __enter__(self) -> "PeakResidentMemory":
        self.start = self.most = psutil.Process().memory_info().rss
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.is_set():
            self.most = max(self.most, psutil.Process().memory_info().rss)
            time.sleep(0.005)

    def __exit__(self, *_) -> None:
        self.done.set()
        self.thread.join()

    @property
    def bytes(self) -> int:
        return self.most - self.start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with the checkpoint, in bf16 or int4")
    parser.add_argument("--dtype", required=True, choices=list(architecture.DTYPES), help="number format of the model")
    parser.add_argument("--max-new-tokens", required=True, type=int, help="number of tokens to generate")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to run on")
    parser.add_argument("--output", required=True, type=Path, help="path of memory.json")
    arguments = parser.parse_args()
    devices.claim(arguments.device)
    with PeakResidentMemory() as resident:
        model = inference.load_model(arguments.checkpoint, architecture.DTYPES[arguments.dtype], arguments.device)
        prompt, generated = generate(model, arguments)
    on_gpu = arguments.device == "cuda"
    files.write_json(
        arguments.output,
        Memory(
            peak_gb=(torch.cuda.max_memory_reserved() if on_gpu else resident.bytes) / 1e9,
            measure="max_memory_reserved" if on_gpu else "resident memory above the start",
            weights_gb=inference.weight_bytes(model) / 1e9,
            checkpoint_gb=weight_files.file_bytes(arguments.checkpoint) / 1e9,
            predicted=predict(arguments.checkpoint, model, prompt + generated),
            dequantized=inference.is_dequantized(arguments.checkpoint, arguments.device),
            int4_path=inference.int4_path(arguments.checkpoint, arguments.device),
            generated_tokens=generated,
            dtype=arguments.dtype,
            device=devices.name(arguments.device),
        ),
    )


def predict(checkpoint: Path, model: PreTrainedModel, tokens: int) -> Prediction:
    """Return the gigabytes that follow from the checkpoint itself: its weights as stored, and the cache of `tokens`."""
    weights: Counter[str] = Counter()
    for tensor in weight_files.stored_tensors(checkpoint).values():
        weights[tensor.dtype] += tensor.nbytes
    cache = cache_bytes(model, tokens)
    return Prediction(
        weights_gb={name: size / 1e9 for name, size in sorted(weights.items())},
        cache_gb=cache / 1e9,
        total_gb=(weights.total() + cache) / 1e9,
    )


def cache_bytes(model: PreTrainedModel, tokens: int) -> int:
    """Return the bytes of the cache of the given number of tokens, from what the model keeps of one and of two.

    A layer with a sliding window keeps no more than the window; a recurrent layer keeps the same of any text.
    """
    total = 0
    for one, two in zip(cache_layers(model, 1), cache_layers(model, 2), strict=True):
        kept = min(tokens, getattr(two, "sliding_window", tokens))
        total += layer_bytes(one) + (kept - 1) * (layer_bytes(two) - layer_bytes(one))
    return total


@torch.no_grad()
def cache_layers(model: PreTrainedModel, tokens: int) -> list:
    """Return the layers of the cache that a model returns; the list is empty if it returns no cache."""
    output = model(torch.zeros(1, tokens, dtype=torch.long, device=model.device), use_cache=True)
    return next((value.layers for value in output.values() if isinstance(value, Cache)), [])


def layer_bytes(layer: object) -> int:
    """Return the bytes of the tensors that a layer of a cache holds, under whatever names."""
    values = [*vars(layer).values()]
    values += [part for value in values if isinstance(value, (list, tuple)) for part in value]
    values += [part for value in values if isinstance(value, dict) for part in value.values()]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor) and value.ndim)


def generate(model: PreTrainedModel, arguments: argparse.Namespace) -> tuple[int, int]:
    """Generate from the card's prompt; return how many tokens the prompt has, and how many are new.

    The card's empty system message is left out: it changes nothing that is measured, and some templates refuse any
    system message.
    """
    tokenizer = tokenization.load_tokenizer(arguments.checkpoint)
    text = tokenization.render(tokenizer, [PROMPT], add_generation_prompt=True)
    inputs = torch.tensor(tokenization.encode(tokenizer, [text]), device=arguments.device)
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    length = arguments.max_new_tokens
    mask = torch.ones_like(inputs)
    output = model.generate(inputs, attention_mask=mask, max_new_tokens=length, min_new_tokens=length, do_sample=False)
    prompt = inputs.shape[1]
    return prompt, output.shape[1] - prompt


if __name__ == "__main__":
    errors.run(main)
