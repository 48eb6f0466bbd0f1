"""A config that does not fit its model is refused when the model is downloaded, and at once at each later start."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.quantizers.quantizers_utils import should_convert_module

import download_model
import quantize
from families import SIZES, write_model
from int4_qat.config import model_facts
from int4_qat.config.quantizations import training_words
from int4_qat.engines import inference
from int4_qat.system.errors import InputError
from programs import INT4, RECIPE, VARIANTS, entry_of, quantize_options, run_in_process, seen
from workflows import demo, small_config, write_config

QAT = RECIPE | seen() | {"quantization": "int4"}
SETTINGS = {
    "source": "model",
    "model": "tiny",
    "variants": VARIANTS,
    "quantizations": {"int4": entry_of(INT4)},
    "evaluation": {"chartqa": None, "divergence": None},
    "arms": {"qat": QAT},
}


def bring(untrained, folder, monkeypatch, settings=SETTINGS):
    paths = ["--source", untrained / "model", "--output", folder / "model", "--facts", folder / "model.json"]
    run_in_process(download_model, monkeypatch, *paths, "--settings", json.dumps(settings), "--results", folder)
    return json.loads((folder / "model.json").read_text())


@pytest.fixture(scope="module")
def facts(untrained, tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        return bring(untrained, tmp_path_factory.mktemp("facts"), monkeypatch)


def test_the_facts_are_those_of_the_model(facts, untrained):
    assert facts["sees_pictures"]
    assert facts["longest_text"] == 8192
    assert facts["no_text_passes_through"] == ["model.multi_modal_projector", "model.vision_tower"]
    assert sorted(set(facts["inputs"].values())) == [64, 128]
    assert (facts["bos"], facts["instruction_part"]) == ("<bos>", "<start_of_turn>user\n")
    assert facts["response_part"] == "<start_of_turn>model\n"
    assert facts["bytes"]["bf16"] == (untrained / "model" / "model.safetensors").stat().st_size


def quantization(**changes):
    """Return the settings with another quantization, for both training and exports."""
    entry = entry_of(INT4) | changes
    return SETTINGS | {"quantizations": {"int4": entry}, "arms": {"qat": QAT | training_words(entry)}}


MISFITS = [
    (
        quantization(ignore=["lm_head", "q_porj"]),
        "quantizations.int4.ignore: expected parts of module names of a Gemma3ForConditionalGen",
    ),
    (quantization(ignore=["proj"]), "quantizations.int4.ignore: expected parts of module names of a Gemma3ForCond"),
    (
        quantization(group_size=128),
        "quantizations.int4.group_size: expected a divisor of the 64 inputs of model.language",
    ),
    (
        {"evaluation": {"chartqa": None, "divergence": {"context": 8193}}},
        "evaluation.divergence.context: expected at most 8192, the context of tiny, found 8193",
    ),
    (
        {"calibration": {"length": 8193}},
        "calibration.length: expected at most 8192, the context of tiny, found 8193",
    ),
    (
        {"arms": {"qat": QAT | {"response_part": "<|assistant|>\n"}}},
        "finetune.response_part: expected '<start_of_turn>model\\n', as the chat template writes it, found",
    ),
    (
        {"arms": {"qat": QAT | {"instruction_part": "[INST]"}}},
        "finetune.instruction_part: expected '<start_of_turn>user\\n', as the chat template writes it, found",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), MISFITS)
def test_a_config_that_does_not_fit(facts, changes, expected):
    (line,) = model_facts.misfits(facts, SETTINGS | changes)
    assert line.startswith(expected)


def test_what_names_something_fits(facts):
    for ignored in (
        "lm_head",
        "vision_tower",
        "multi_modal_projector",
        "layers.1",
        "model.language_model.layers.0.mlp",
    ):
        assert list(model_facts.misfits(facts, quantization(ignore=[ignored]))) == []
    for layer in facts["inputs"]:
        found = list(model_facts.misfits(facts, quantization(ignore=[layer])))
        alone = layer.endswith(("o_proj", "down_proj"))  # vLLM fuses the others
        assert len(found) == (0 if alone else 1), layer


def test_charts_for_a_model_that_sees_none(facts):
    (line,) = model_facts.misfits(
        facts | {"sees_pictures": False}, SETTINGS | {"evaluation": {"chartqa": {"model": "x"}, "divergence": None}}
    )
    assert line.startswith("evaluation.chartqa: expected null for tiny, since a Gemma3ForConditionalGeneration sees no")


def test_a_disk_that_is_too_small(facts, tmp_path):
    assert list(model_facts.full_disk(facts, SETTINGS, tmp_path / "results")) == []
    large = facts | {"bytes": {"bf16": 10**18, "int4": {"64": 10**17}}}
    (line,) = model_facts.full_disk(large, SETTINGS, tmp_path / "results")
    assert "expected 1200000000.0 GB free for the variants of the model, found" in line  # one merged, two in int4
    for name in ("qat-bf16", "base-int4", "qat-int4"):
        (tmp_path / "results" / name / "checkpoint").mkdir(parents=True)
    assert list(model_facts.full_disk(large, SETTINGS, tmp_path / "results")) == []


def test_calibration_leaves_a_checkpoint_in_bf16_besides(facts, tmp_path):
    large = facts | {"bytes": {"bf16": 10**18, "int4": {"64": 10**17}}}
    table = {"int4": entry_of(INT4), "gptq": entry_of(INT4) | {"method": "gptq"}}
    settings = SETTINGS | {"quantizations": table, "variants": ["base-bf16", "base-int4", "base-gptq"]}
    (line,) = model_facts.full_disk(large, settings, tmp_path / "results")
    assert "expected 1200000000.0 GB free for the variants of the model, found" in line


def test_a_model_comes_only_with_a_config_that_fits(untrained, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"parts of module names of a Gemma3\w+, found 'q_porj'"):
        bring(untrained, tmp_path, monkeypatch, quantization(ignore=["q_porj"]))
    assert list(tmp_path.iterdir()) == []


def test_a_later_config_is_held_against_a_model_that_is_there(facts, untrained, tmp_path):
    """The check runs when Snakemake starts, whatever the rules would do; facts from another source are ignored."""
    config = small_config(untrained)
    known = facts | {"source": config["models"]["demo"]["source"]}
    (tmp_path / "resources" / "models").mkdir(parents=True)
    place = tmp_path / "resources" / "models" / "demo.json"
    for entry in config["quantizations"].values():
        entry["ignore"] = ["q_porj"]
    command = [tmp_path, "--dry-run", "--configfile", write_config(config, tmp_path / "config.yaml")]
    place.write_text(json.dumps(known))
    result = demo(*command)
    assert result.returncode != 0
    assert "config error: quantizations.int4.ignore: expected parts of module names of a Gemma3For" in result.stderr
    assert "Traceback" not in result.stderr
    place.write_text(json.dumps(known | {"source": "another"}))
    assert demo(*command).returncode == 0


@pytest.fixture(scope="module")
def deep(untrained, tmp_path_factory):
    """Return the folder of a Llama with 12 layers: the name of layer 1 is a prefix of those of layers 10 and 11."""
    config = transformers.LlamaConfig(**SIZES | {"num_hidden_layers": 12, "tie_word_embeddings": False})
    return write_model(config, untrained / "model", tmp_path_factory.mktemp("deep") / "model")


def export(source, folder, monkeypatch, *ignore):
    options = quantize_options(ignore=ignore)
    run_in_process(quantize, monkeypatch, "--checkpoint", source, *options, "--output", folder)
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize("ignored", ["layers.1", "model.layers.1", "model.layers.1.mlp.up_proj", "o_proj"])
def test_what_is_ignored_is_what_config_json_says(deep, ignored, tmp_path, monkeypatch):
    manifest = export(deep, tmp_path / "int4", monkeypatch, ignored)
    in_int4 = {layer["name"] for layer in manifest["layers"] if layer["quantized"]}
    kept = {layer["name"] for layer in manifest["layers"]} - in_int4
    assert kept == {name for name in kept if f".{ignored}." in f".{name}."} | {"lm_head"}
    assert len(kept) > 1
    patterns = json.loads((tmp_path / "int4" / "config.json").read_text())["quantization_config"][
        "modules_to_not_convert"
    ]
    assert {name for name in in_int4 | kept if should_convert_module(f"{name}.weight", patterns)} == in_int4
    stored = load_file(tmp_path / "int4" / "model.safetensors")
    assert {name.removesuffix("._weight_qdata") for name in stored if name.endswith("_qdata")} == in_int4
    assert (
        inference.load_model(tmp_path / "int4", torch.float32, "cpu")(input_ids=torch.tensor([[2, 5]]))
        .logits.isfinite()
        .all()
    )


def test_an_entry_that_names_nothing_is_refused_by_hand_too(deep, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"expected parts of module names of LlamaForCausalLM, found 'layers\.12'"):
        export(deep, tmp_path / "int4", monkeypatch, "layers.12")
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_names_what_is_not_in_int4(deep, tmp_path, monkeypatch):
    manifest = export(deep, tmp_path / "int4", monkeypatch)
    assert [(other["name"], other["shape"]) for other in manifest["others"]] == [
        ("model.embed_tokens.weight", [1024, 64])
    ]
    assert manifest["others"][0]["reason"] == "no weight of a Linear: Embedding"
    weights = 12 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    assert manifest["share_in_int4"] == pytest.approx(2 * weights / manifest["bytes_before"])
