"""Write models with sharp predictions, and run the two programs that compare them in this process."""

from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import families
import quantize
from int4_qat.quantization import schemes
from int4_qat.system import files
from programs import INT4, quantize_options, run_in_process

CONTEXT, LIMIT = 32, 150


SCALED = {  # these models multiply their logits by a factor far from 1
    "cohere": ("CohereConfig", families.SIZES | {"logit_scale": 0.0625}),
    "granite": ("GraniteConfig", families.SIZES | {"logits_scaling": 8.0}),
}


def sharpen(folder: Path, change: float = 0.0, seed: int = 0, head: bool = False) -> Path:
    """Sharpen a random model's predictions in place, with noise in its linears, or in its head instead, if asked."""
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for name, weight in weights.items():
        if weight.ndim == 2 and "embed" not in name:
            changed = change if ("lm_head" in name) == head else 0
            noise = torch.randn(weight.shape, generator=generator) * weight.float().std()
            weights[name] = ((weight.float() + changed * noise) * 8).to(weight.dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def write(name: str, tokenizer: Path, folder: Path, **changes) -> Path:
    if name not in SCALED:
        return sharpen(families.write(name, tokenizer, folder), **changes)
    config_class, values = SCALED[name]
    return sharpen(
        families.write_model(getattr(transformers, config_class)(**values), tokenizer, folder),
        **changes,
    )


def write_int4(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, scheme: schemes.Scheme = INT4) -> Path:
    options = ["--checkpoint", checkpoint, *quantize_options(scheme), "--output", folder]
    run_in_process(quantize, monkeypatch, *options)
    return folder


def found_by(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, words: list, checkpoint: Path
) -> tuple[dict, pd.DataFrame]:
    """Run a program; return its report on a checkpoint and its table of windows."""
    report, samples = (Path(f"{checkpoint}_{name}") for name in ("divergence.json", "samples.parquet"))
    run_in_process(program, monkeypatch, *words, "--report", report, "--samples", samples)
    return files.read_json(report), pd.read_parquet(samples)
