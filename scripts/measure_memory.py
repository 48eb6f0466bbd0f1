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
from pathlib import Path

import psutil
import torch

from int4_qat import devices, errors, files, models

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
        tokens = generate(model, arguments)
    on_gpu = arguments.device == "cuda"
    files.write_json(
        arguments.output,
        {
            "peak_gb": (torch.cuda.max_memory_reserved() if on_gpu else resident.bytes) / 1e9,
            "measure": "max_memory_reserved" if on_gpu else "resident memory above the start",
            "weights_gb": models.weight_bytes(model) / 1e9,
            "checkpoint_gb": files.folder_bytes(arguments.checkpoint, "*.safetensors") / 1e9,
            "dequantized": (arguments.checkpoint / "manifest.json").exists() and not on_gpu,
            "generated_tokens": tokens,
            "dtype": arguments.dtype,
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        },
    )


def generate(model: torch.nn.Module, arguments: argparse.Namespace) -> int:
    """Generate from the card's prompt; the number of new tokens."""
    tokenizer = models.load_tokenizer(arguments.checkpoint)
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": PROMPT}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt").to(arguments.device)
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    length = arguments.max_new_tokens
    output = model.generate(**inputs, max_new_tokens=length, min_new_tokens=length, do_sample=False)
    return output.shape[1] - inputs["input_ids"].shape[1]


if __name__ == "__main__":
    errors.run(main)
