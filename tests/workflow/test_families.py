"""Test that each family in docs/models.md passes through every stage, from download_model to its scores and memory.

The stages run in bf16 on a GPU if there is one, and otherwise in fp32 on the CPU.
"""

import json

import pytest
import torch
from torchao.quantization import Int4Tensor
from transformers.quantizers.quantizers_utils import should_convert_module

import calibrate
import check_parity
import download_model
import evaluate_mmlu
import finetune
import format_mmlu
import link_base
import measure_memory
import merge
import quantize
from families import FAMILIES, marks, write
from int4_qat.checkpoint import loading
from int4_qat.quantization import grids, schemes
from programs import RECIPE, VARIANTS, entry_of, quantize_options, run_in_process, seen

LAYERS = 2
ON_GPU = torch.cuda.is_available()
PLACE = ["--dtype", "bfloat16", "--device", "cuda"] if ON_GPU else ["--dtype", "float32", "--device", "cpu"]
DTYPE, DEVICE = PLACE[1], PLACE[2:]
INT4 = schemes.int4(32)
CALIBRATION = ["--samples", 4, "--length", 32, "--batch-size", 2, "--seed", 0]
EVALUATION = {"chartqa": None, "divergence": None}  # evaluations that a model would have to support
ARM = seen(INT4) | {"qat_target": "merged", "max_steps": 4, "dtype": DTYPE}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_through_the_chain(family, untrained, mmlu_folder, tmp_path, monkeypatch):
    def run(program, *arguments):
        run_in_process(program, monkeypatch, *arguments)

    source = write(family, untrained / "model", tmp_path / "source")
    base, adapter = tmp_path / "base", tmp_path / "qat" / "adapter"
    plain, merged, exported = (tmp_path / name / "checkpoint" for name in ("base-bf16", "qat-bf16", "qat-int4"))
    recipe = RECIPE | ARM | marks(family)
    settings = {"source": str(source), "model": family, "variants": VARIANTS, "evaluation": EVALUATION}
    settings |= {"quantizations": {"int4": entry_of(INT4)}, "arms": {"qat": recipe | {"quantization": "int4"}}}
    facts = ["--settings", json.dumps(settings), "--results", tmp_path, "--facts", tmp_path / "base.json"]
    run(download_model, "--source", source, *facts, "--output", base)
    run(link_base, "--model", base, "--output", plain)
    places = ["--checkpoints", tmp_path / "checkpoints", "--adapter", adapter, "--log-table", tmp_path / "training.csv"]
    rows, texts = mmlu_folder / "auxiliary_train.parquet", tmp_path / "train.parquet"
    run(format_mmlu, "--mmlu", rows, "--tokenizer", base, "--output", texts)
    training = ["--texts", f"questions={texts}", "--recipe", json.dumps(recipe)]
    run(finetune, "--model", base, *training, *places, *DEVICE)
    run(merge, "--model", base, "--adapter", adapter, "--output", merged)
    run(quantize, "--checkpoint", merged, *quantize_options(INT4), "--output", exported)
    comparison = ["--model", base, "--adapter", adapter, "--checkpoint", exported, "--texts", texts]
    run(check_parity, *comparison, *DEVICE, "--output", tmp_path / "parity.json")
    calibrated, compensated = tmp_path / "base-gptq" / "calibrated", tmp_path / "base-gptq" / "checkpoint"
    method = ["--method", "gptq", "--scheme", json.dumps(INT4.words), "--texts", texts, *CALIBRATION]
    run(calibrate, "--checkpoint", plain, *method, *PLACE, "--output", calibrated)
    run(quantize, "--checkpoint", calibrated, *quantize_options(INT4, method="gptq"), "--output", compensated)
    scored = ["--mmlu", mmlu_folder, "--engine", "last_position", "--num-fewshot", 0, "--limit", 2, "--batch-size", 8]
    outputs = ["--output", tmp_path / "mmlu.json", "--samples", tmp_path / "mmlu.parquet"]
    run(evaluate_mmlu, "--checkpoint", exported, *scored, *PLACE, *outputs)
    run(measure_memory, "--checkpoint", plain, *PLACE, "--max-new-tokens", 4, "--output", tmp_path / "memory.json")

    found = json.loads((tmp_path / "base.json").read_text())
    assert len(found["inputs"]) == LAYERS * FAMILIES[family][2]
    assert found["no_text_passes_through"] == (
        ["model.multi_modal_projector", "model.vision_tower"] if family == "gemma3" else []
    )
    parity = json.loads((tmp_path / "parity.json").read_text())
    assert parity["weights_that_differ"] == 0
    assert parity["relative_logit_difference"] < 1e-5
    scores = json.loads((tmp_path / "mmlu.json").read_text())
    assert scores["settings"]["bos"] == found["bos"] == (None if family == "qwen2" else "<bos>")
    assert len(scores["by_subject"]) == 57
    assert json.loads((tmp_path / "memory.json").read_text())["predicted"]["cache_gb"] > 0
    assert_config_says_what_the_export_holds(exported)
    manifest = json.loads((compensated / "manifest.json").read_text())
    assert (manifest["method"], manifest["weights_that_differ"]) == ("gptq", 0)
    in_int4 = {layer["name"] for layer in manifest["layers"] if layer["quantized"]}
    assert grids.read(calibrated).keys() == in_int4
    assert len(in_int4) == LAYERS * FAMILIES[family][2]


def assert_config_says_what_the_export_holds(folder):
    """Assert that config, manifest and files agree on which linears are in int4, as transformers reads the config."""
    patterns = json.loads((folder / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
    manifest = json.loads((folder / "manifest.json").read_text())
    in_int4 = {layer["name"] for layer in manifest["layers"] if layer["quantized"]}
    loaded = loading.load(folder, torch.bfloat16, "cpu")
    linears = {name: module for name, module in loaded.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {name for name in linears if should_convert_module(f"{name}.weight", patterns)} == in_int4
    assert {name for name, module in linears.items() if isinstance(module.weight, Int4Tensor)} == in_int4
    named = {layer["name"] for layer in manifest["layers"]} | {
        other["name"].removesuffix(".weight") for other in manifest["others"]
    }
    matrices = {name for name, parameter in loaded.named_parameters() if parameter.ndim > 1}
    assert {name.removesuffix(".weight") for name in matrices} <= named
