"""Measure what a checkpoint needs: peak memory while it generates, weights in memory, bytes on the disk.

On a GPU the peak is the card's measure, max_memory_reserved after 128 generated tokens. On a CPU it is the most
resident memory of the process above what it held before the model was loaded. A CPU has no int4 kernels here:
`dequantized` says that the weights in memory were not those on the disk.

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
from transformers import AutoConfig, PretrainedConfig

from int4_qat import devices, errors, files, models, tokenization, weight_files

PROMPT = "Hey, are you conscious? Can you talk to me?"


class PeakResidentMemory:
    """The most resident memory of this process above its start, watched by a thread."""

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
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder, bf16 or int4")
    parser.add_argument("--dtype", required=True, choices=list(models.DTYPES))
    parser.add_argument("--max-new-tokens", required=True, type=int)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", required=True, type=Path, help="memory.json")
    arguments = parser.parse_args()
    devices.claim(arguments.device)
    with PeakResidentMemory() as resident:
        model = models.load_model(arguments.checkpoint, models.DTYPES[arguments.dtype], arguments.device)
        prompt, generated = generate(model, arguments)
    on_gpu = arguments.device == "cuda"
    files.write_json(
        arguments.output,
        {
            "peak_gb": (torch.cuda.max_memory_reserved() if on_gpu else resident.bytes) / 1e9,
            "measure": "max_memory_reserved" if on_gpu else "resident memory above the start",
            "weights_gb": models.weight_bytes(model) / 1e9,
            "checkpoint_gb": weight_files.file_bytes(arguments.checkpoint) / 1e9,
            "predicted": predict(arguments.checkpoint, prompt + generated, models.DTYPES[arguments.dtype]),
            "dequantized": models.is_dequantized(arguments.checkpoint, arguments.device),
            "int4_path": models.int4_path(arguments.checkpoint, arguments.device),
            "generated_tokens": generated,
            "dtype": arguments.dtype,
            "device": devices.name(arguments.device),
        },
    )


def predict(checkpoint: Path, tokens: int, dtype: torch.dtype) -> dict:
    """Gigabytes that the checkpoint's own numbers ask for: its weights as stored, and the cache of `tokens`."""
    weights: Counter[str] = Counter()
    for tensor in weight_files.stored_tensors(checkpoint).values():
        weights[tensor.dtype] += tensor.nbytes
    config = AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    cache = cache_bytes(config.get_text_config(), tokens, dtype)
    return {
        "weights_gb": {name: size / 1e9 for name, size in sorted(weights.items())},
        "cache_gb": cache / 1e9,
        "total_gb": (weights.total() + cache) / 1e9,
    }


def cache_bytes(config: PretrainedConfig, tokens: int, dtype: torch.dtype) -> int:
    """Keys and values of every layer; a layer with a sliding window keeps no more than that."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None) or tokens
    kept = sum(min(tokens, window) if kind == "sliding_attention" else tokens for kind in kinds)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * kept * config.num_key_value_heads * head * dtype.itemsize


def generate(model: torch.nn.Module, arguments: argparse.Namespace) -> tuple[int, int]:
    """Generate from the card's prompt; how many tokens that has, and how many are new."""
    tokenizer = tokenization.load_tokenizer(arguments.checkpoint)
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": PROMPT}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt").to(arguments.device)
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    length = arguments.max_new_tokens
    output = model.generate(**inputs, max_new_tokens=length, min_new_tokens=length, do_sample=False)
    prompt = inputs["input_ids"].shape[1]
    return prompt, output.shape[1] - prompt


if __name__ == "__main__":
    errors.run(main)
