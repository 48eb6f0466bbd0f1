"""Measure GPTQ's settings on a real model: change one setting at a time, and report the KL from bf16 that results.

The model stays in memory and is recalibrated for each setting. The KL is over windows of 1,024 tokens that are spread
evenly over each held-out text. --settings takes some of the settings below, by name; bench_recipes.py measures the best
one in full.

    python tests/bench/bench_gptq.py --model models/gemma-3-270m --questions /tmp/train.parquet \\
        --general /data/text/wikitext2_valid.txt --held-out /data/text/wikitext2_test.txt /data/text/gsm8k.txt
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from int4_qat.checkpoint import architecture, loading
from int4_qat.evaluation import divergence
from int4_qat.quantization import calibration, calibration_texts, clipping, compensation, int4, linears, schemes
from int4_qat.quantization.methods import awq, gptq
from int4_qat.tokenizer import tokenization

CONTEXT, BLOCK = 1024, 512  # tokens per window and per block of logits
# A setting changes an attribute of compensation or clipping, or the calibration itself.
SETTINGS = {
    "as it is": {},
    "seed 1": {"seed": 1},
    "seed 2": {"seed": 2},
    "follows nothing": {"FOLLOWED": 0.0},
    "follows 0.25": {"FOLLOWED": 0.25},
    "follows 0.75": {"FOLLOWED": 0.75},
    "follows all": {"FOLLOWED": 1.0},
    "damping 0.01": {"DAMPING": 0.01},
    "damping 0.1": {"DAMPING": 0.1},
    "columns as they stand": {"order_of": lambda sizes, _: torch.arange(len(sizes), device=sizes.device)},
    "ranges as they are": {"SHARES": (1.0,)},
    "ranges down to 0.7": {"SHARES": (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)},
    "32 windows of 512": {"samples": 32, "length": 512},
    "64 windows": {"samples": 64},
    "256 windows": {"samples": 256},
    "general text alone": {"texts": "general"},
    "questions alone": {"texts": "questions"},
    "float zero points": {"scheme": schemes.int4(128, schemes.FLOAT)},
    "symmetric": {"scheme": schemes.int4(128, None)},
    "groups of 32": {"scheme": schemes.int4(32, schemes.INTEGER)},
    "awq": {"method": awq},
    "rounding": {"method": None},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder with the model, in bf16")
    parser.add_argument("--questions", required=True, type=Path, help="parquet file written by format_mmlu")
    parser.add_argument("--general", required=True, type=Path, help="text to calibrate on")
    parser.add_argument("--held-out", required=True, type=Path, nargs="+", help="held-out texts to measure on")
    parser.add_argument(
        "--settings",
        nargs="+",
        default=list(SETTINGS),
        choices=list(SETTINGS),
        help="settings to measure, by name; all if omitted",
    )
    parser.add_argument("--samples", type=int, default=128, help="number of windows to calibrate on")
    parser.add_argument("--length", type=int, default=1024, help="number of tokens per window, bos included")
    parser.add_argument("--windows", type=int, default=64, help="number of windows per held-out text")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"], help="device to run on")
    arguments = parser.parse_args()
    model = loading.load(
        arguments.model, torch.bfloat16 if arguments.device == "cuda" else torch.float32, arguments.device
    )
    bench = Bench(arguments, model)
    print("| setting | " + " | ".join(f"{path.stem}: KL | nats" for path in arguments.held_out) + " | seconds |")
    print("|---" * (2 + 2 * len(arguments.held_out)) + "|")
    for name in arguments.settings:
        cells, seconds = bench.run(SETTINGS[name])
        print(f"| {name} | {' | '.join(cells)} | {seconds:.1f} |", flush=True)


class Bench:
    """A model in memory, its bf16 hidden states on the held-out texts, and a copy of its original weights."""

    def __init__(self, arguments: argparse.Namespace, model):
        self.arguments, self.model = arguments, model
        self.tokenizer = tokenization.load_tokenizer(arguments.model)
        meta, _, names = architecture.open_checkpoint(arguments.model)
        layers = linears.choose(meta, set(names.values()), schemes.int4(128), ())
        self.names = [layer["name"] for layer in layers if layer["quantized"]]
        self.state = {key: values.clone() for key, values in model.state_dict().items()}
        self.head = model.get_output_embeddings().weight.data
        self.texts = {path.stem: self.spread(path) for path in arguments.held_out}
        self.base = {name: self.hidden(windows) for name, windows in self.texts.items()}

    def spread(self, path: Path) -> list[list[int]]:
        """Return windows that are spread evenly over a text."""
        found = divergence.windows(self.tokenizer, path.read_text(encoding="utf-8"), CONTEXT, None)[:-1]
        places = torch.linspace(0, len(found) - 1, min(self.arguments.windows, len(found))).long().tolist()
        return [found[place] for place in places]

    def hidden(self, windows: list[list[int]]) -> torch.Tensor:
        """Return the last hidden states (windows, tokens, width)."""
        return torch.cat([divergence.last_hidden_states(self.model, [window]) for window in windows])

    def run(self, setting: dict) -> tuple[list[str], float]:
        """Calibrate with a setting; return the KL and loss of each text, and the seconds of the calibration."""
        arguments, setting = self.arguments, dict(setting)
        self.model.load_state_dict(self.state)
        scheme, method = setting.pop("scheme", schemes.int4(128, schemes.INTEGER)), setting.pop("method", gptq)
        paths = {"general": [arguments.general], "questions": [arguments.questions]}
        chosen = paths.get(setting.pop("texts", None), [arguments.questions, arguments.general])
        samples, length = setting.pop("samples", arguments.samples), setting.pop("length", arguments.length)
        tokens = calibration_texts.read(chosen, self.tokenizer, samples, length, setting.pop("seed", 0))
        start = time.perf_counter()
        with Changed(setting):
            grids = calibration.calibrate(self.model, tokens, self.names, method.calibrate, scheme, 8) if method else {}
        seconds = time.perf_counter() - start
        for name in self.names:
            weight = self.model.get_submodule(name).weight
            weight.data = int4.fake_quantize(weight.data, scheme, grid=grids.get(name))
        return [self.compare(name) for name in self.texts], seconds

    @torch.no_grad()
    def compare(self, name: str) -> str:
        """Return the KL and loss of a text, in nats per token."""
        windows = torch.tensor(self.texts[name], device=self.head.device)
        found, base = (states[:, :-1].flatten(0, 1) for states in (self.hidden(self.texts[name]), self.base[name]))
        targets, kl, loss = windows[:, 1:].flatten(), 0.0, 0.0
        for part in torch.arange(len(targets), device=self.head.device).split(BLOCK):
            ours, theirs = (torch.log_softmax((states[part] @ self.head.T).float(), -1) for states in (found, base))
            kl += (theirs.exp() * (theirs - ours)).sum().item()
            loss -= ours.gather(1, targets[part][:, None]).sum().item()
        return f"{kl / len(targets):.4f} | {loss / len(targets):.4f}"


class Changed:
    """A context in which some attributes of compensation and clipping have other values."""

    def __init__(self, values: dict):
        self.values = {
            key: (clipping if hasattr(clipping, key) else compensation, value) for key, value in values.items()
        }

    def __enter__(self):
        self.kept = {key: getattr(module, key) for key, (module, _) in self.values.items()}
        for key, (module, value) in self.values.items():
            setattr(module, key, value)

    def __exit__(self, *_):
        for key, (module, _) in self.values.items():
            setattr(module, key, self.kept[key])


if __name__ == "__main__":
    main()
