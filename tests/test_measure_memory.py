"""What a checkpoint's numbers predict, against sums by hand."""

import json

import pytest
import torch
from transformers import Gemma3TextConfig

import measure_memory
from programs import run_script


def test_the_cache_of_gemma_3_12b():
    config = Gemma3TextConfig(
        num_hidden_layers=48, num_key_value_heads=8, num_attention_heads=16, head_dim=256, sliding_window=1024
    )
    short = 2 * 48 * 150 * 8 * 256 * 2  # keys and values, layers, tokens, heads, width, bytes
    assert measure_memory.cache_bytes(config, 150, torch.bfloat16) == short
    # one layer in six sees everything, the others a window of 1,024
    long = 2 * (8 * 4096 + 40 * 1024) * 8 * 256 * 2
    assert measure_memory.cache_bytes(config, 4096, torch.bfloat16) == long


def test_predicted_and_measured_stand_side_by_side(untrained, tmp_path):
    output = tmp_path / "memory.json"
    options = ["--checkpoint", untrained / "model", "--dtype", "float32", "--max-new-tokens", 4, "--output", output]
    result = run_script("measure_memory", *options)
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    predicted = report["predicted"]
    assert report["generated_tokens"] == 4
    assert set(predicted["weights_gb"]) == {"BF16"}
    # in memory the weights are fp32; the tied head is stored once
    assert 2 * predicted["weights_gb"]["BF16"] == pytest.approx(report["weights_gb"], rel=0.01)
    assert report["int4_path"] is None
    assert predicted["total_gb"] == pytest.approx(predicted["weights_gb"]["BF16"] + predicted["cache_gb"])
