"""Compare merge and quantize with transformers, peft and torchao doing the same in memory, and with a plain copy.

The checkpoint has 5.7 GB in Gemma 3 12B's shapes, with 8 of its 48 layers, and the adapter is on all its linears; both
are random. Each command runs in a separate process. Peak memory is the process's resident set, and seconds include its
imports. The benchmark needs 18 GB of disk in --directory, and leaves nothing there.

    python tests/bench/bench_export.py --directory /tmp
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from int4_qat.quantization import schemes

SCRIPTS = Path(__file__).parents[2] / "scripts"
NOT_TEXT = ["lm_head", "vision_tower", "multi_modal_projector"]
TEXT = {
    "vocab_size": 262208,
    "hidden_size": 3840,
    "intermediate_size": 15360,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
}
VISION = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 2, "num_attention_heads": 16}
PARTS = ["make_checkpoint", "in_memory_merge", "in_memory_quantize", "torchao_config"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="folder for the checkpoints; a temporary one by default")
    parser.add_argument("--only", nargs="*", help="rows of the table, by parts of their titles; all if omitted")
    parser.add_argument("--run", choices=PARTS, help="single part to run in this process")
    arguments = parser.parse_args()
    if arguments.run:
        globals()[arguments.run](arguments.directory)
        return
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        folder = Path(scratch)
        itself = [sys.executable, __file__, "--directory", folder, "--run"]
        measure([*itself, "make_checkpoint"])
        size = sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors"))
        print(f"checkpoint of {size / 1e9:.2f} GB, {os.cpu_count()} cores")
        print(f"{'':34} {'seconds':>8} {'CPU s':>8} {'peak GB':>8}")
        merge = [sys.executable, SCRIPTS / "merge.py", "--model", folder / "model", "--adapter", folder / "adapter"]
        quantize = [sys.executable, SCRIPTS / "quantize.py", "--checkpoint", folder / "model"]
        quantize += ["--scheme", json.dumps(schemes.int4(128).words), "--method", "rtn", "--format", "torchao-plain"]
        for title, command in {
            "imports of merge": [*merge, "--help"],
            "plain copy": ["cp", "-r", folder / "model", folder / "output"],
            "merge": [*merge, "--output", folder / "output"],
            "merge, peft in memory": [*itself, "in_memory_merge"],
            "quantize": [*quantize, "--output", folder / "output"],
            "quantize, in memory": [*itself, "in_memory_quantize"],
            "TorchAoConfig (Intx, 1 byte)": [*itself, "torchao_config"],
        }.items():
            if arguments.only and not any(part in title for part in arguments.only):
                continue
            seconds, on_cpu, peak = measure(command)
            print(f"{title:34} {seconds:8.1f} {on_cpu:8.1f} {peak / 1e9:8.2f}", flush=True)
            shutil.rmtree(folder / "output", ignore_errors=True)


def measure(command: list) -> tuple[float, float, int]:
    """Return the seconds, the seconds of all cores together, and the peak resident bytes of a command.

    A process's peak starts at that of its parent, so nothing large is imported here.
    """
    os.sync()
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            log.seek(0)
            sys.exit(log.read().decode()[-2000:])
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def make_checkpoint(folder: Path) -> None:
    """Write random weights, block by block, and a random adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import Gemma3Config

    from int4_qat.checkpoint import architecture, weight_writer

    model, adapter = folder / "model", folder / "adapter"
    config = Gemma3Config(text_config=TEXT, vision_config=VISION, architectures=["Gemma3ForConditionalGeneration"])
    config.save_pretrained(model)
    empty = architecture.without_weights(model)
    plan = {name: tensor for name, tensor in empty.state_dict().items() if name != "lm_head.weight"}
    for tensor in weight_writer.create(model, plan).values():
        for start, stop in tensor.blocks():
            tensor.write((0.02 * torch.randn(stop - start)).to(torch.bfloat16), start)
    lora = LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", exclude_modules=r".*vision_tower.*")
    adapted = get_peft_model(empty, lora, low_cpu_mem_usage=True)
    tensors = {name.replace(".default", ""): p for name, p in adapted.named_parameters() if p.requires_grad}
    adapted.peft_config["default"].save_pretrained(adapter)
    random = {name: 0.02 * torch.randn(tensor.shape) for name, tensor in tensors.items()}
    save_file(random, adapter / "adapter_model.safetensors", {"format": "pt"})


def in_memory_merge(folder: Path) -> None:
    import torch

    import in_memory

    in_memory.merge(folder / "model", folder / "adapter", folder / "output", torch.bfloat16, max_shard_size="5GB")


def in_memory_quantize(folder: Path) -> None:
    import in_memory

    in_memory.quantize(folder / "model", schemes.int4(128), NOT_TEXT, folder / "output", max_shard_size="5GB")


def torchao_config(folder: Path) -> None:
    """Quantize with torchao's nearest equivalent on a CPU: int4 values in one byte each."""
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup
    from transformers import AutoModelForImageTextToText, TorchAoConfig

    scheme = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(128))
    config = TorchAoConfig(scheme, modules_to_not_convert=[*NOT_TEXT, "model.vision_tower"])
    model = AutoModelForImageTextToText.from_pretrained(
        folder / "model", dtype=torch.bfloat16, quantization_config=config
    )
    model.save_pretrained(folder / "output", max_shard_size="5GB")


if __name__ == "__main__":
    main()
