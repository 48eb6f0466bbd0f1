"""Test that the card shows the figures of its results and no others, and that huggingface_hub reads its metadata."""

import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard

import made_results
from int4_qat.results import card as cards
from int4_qat.results import measurements
from int4_qat.system.errors import InputError
from programs import run_script
from workflows import planned


def settings_of(results):
    return json.loads((results / "provenance.json").read_text())["settings"]


def change(path, *keys, value=None):
    """Set a value deep in a JSON file, or delete it."""
    content = json.loads(path.read_text())
    *parents, last = keys
    place = content
    for key in parents:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    path.write_text(json.dumps(content))


def body(card):
    return ModelCard(card).text.strip()


def test_huggingface_hub_reads_the_metadata(finished):
    data = ModelCard.load(finished / "model_card.md").data
    published = json.loads((finished / "qat-int4" / "mmlu.json").read_text())
    (accuracy,) = data.eval_results
    assert accuracy.metric_value == pytest.approx(published["accuracy"], abs=5e-5)
    assert (accuracy.dataset_name, accuracy.dataset_split, accuracy.metric_type) == ("MMLU", "test", "accuracy")
    assert (data.license, data.library_name, data.model_name) == ("apache-2.0", "transformers", "demo-qat-int4")
    assert {"torchao", "int4", "qat", "gemma3"} <= set(data.tags)


def test_sources_on_the_hub_are_named_with_their_revisions(finished):
    settings = settings_of(finished)
    settings |= {"source": f"hf://google/gemma-3-12b-it@{'a' * 40}"}
    settings |= {"data": {"source": f"hf://datasets/cais/mmlu@{'b' * 40}"}}
    settings["card"] |= {
        "repository": "me/int4",
        "license": "gemma",
        "license_link": "https://ai.google.dev/gemma/terms",
    }
    card = cards.render(finished, settings)
    data = ModelCard(card).data
    assert (data.base_model, data.base_model_relation, data.datasets) == (
        "google/gemma-3-12b-it",
        "quantized",
        ["cais/mmlu"],
    )
    assert (data.eval_results[0].dataset_revision, data.model_name) == ("b" * 40, "int4")
    assert f"revision `{'a' * 40}`" in card
    assert "vllm serve" in card
    assert 'model_name = "me/int4-INT4"' in card
    assert "export MODEL=me/int4-INT4" in card
    assert "vLLM has no int4 kernels of its own for `torchao-plain`" in card
    assert card.count("https://ai.google.dev/gemma/terms") >= 3
    assert body(card).startswith("# QAT INT4 google/gemma-3-12b-it")


def test_the_published_variant_alone_must_have_been_served(finished):
    """The rule takes no other variant's serving.json as an input."""
    settings, served = settings_of(finished), made_results.serving()
    keys = ("dtype", "max_tokens", "vllm_arguments")
    settings["evaluation"]["serving"] = {key: served[key] for key in keys} | {"concurrency": [1], "time_limit": 60}
    settings["quantizations"]["int4"]["formats"] = ["torchao-plain", "compressed-tensors"]
    folder = shutil.copytree(finished / "qat-int4" / "checkpoint", finished / "qat-int4" / "compressed-tensors")
    change(folder / "config.json", "quantization_config", "quant_method", value="compressed-tensors")
    (finished / "qat-int4" / "serving.json").write_text(json.dumps(served))
    card = cards.render(finished, settings)
    assert "with vLLM 0.32.0 on NVIDIA H100 80GB HBM3 and its kernel `MacheteLinearKernel`" in card
    assert "export MODEL=results/demo/qat-int4/compressed-tensors" in card
    assert 'model_name = "results/demo/qat-int4/checkpoint"' in card
    assert not {"torchao", "compressed-tensors"} & set(ModelCard(card).data.tags)  # both formats share this card


def test_a_variant_that_no_engine_serves_has_no_latency_and_says_why(finished):
    settings = settings_of(finished)
    settings["evaluation"]["latency"]["engine"] = "vllm"
    summary = json.loads((finished / "summary.json").read_text())
    not_served = measurements.not_served(settings)
    for row in summary["variants"]:
        row["not_served"] = not_served.get(row["name"], {})
        row["latency"] = None if row["not_served"] else row["latency"] | {"engine": "vllm"}
    for name in ("base-bf16", "lora-bf16"):
        change(finished / name / "latency.json", "engine", value="vllm")
    (finished / "summary.json").write_text(json.dumps(summary))
    card = cards.render(finished, settings)
    assert "Not measured: vllm computes with int4 in compressed-tensors, which is not among its formats." in card


@pytest.mark.parametrize("key", ["source", "data"])
def test_a_standin_is_said_in_the_first_line(finished, key):
    settings = settings_of(finished)
    settings[key] = {"source": "standin"} if key == "data" else "standin"
    first = body(cards.render(finished, settings)).splitlines()[0]
    assert first.startswith("> **Made on a stand-in: ")


def test_every_accuracy_stands_in_the_table_with_its_interval(finished):
    card = (finished / "model_card.md").read_text()
    for row in json.loads((finished / "summary.json").read_text())["variants"]:
        low, high = (100 * end for end in row["mmlu"]["accuracy_ci95"])
        wanted = f"{100 * row['mmlu']['accuracy']:.2f}% [{low:.2f}, {high:.2f}]"
        assert re.search(rf"^\| \**{row['name']}\** \| {re.escape(wanted)} \|", card, re.MULTILINE)


def test_the_divergence_comes_first(finished):
    card = (finished / "model_card.md").read_text()
    assert card.index("### Is it still the same model?") < card.index("### MMLU")
    for row in json.loads((finished / "summary.json").read_text())["variants"]:
        kl = row["divergence"]["families"]["kl"]
        wanted = f"{kl['value']:.4f} [{kl['ci95'][0]:.4f}, {kl['ci95'][1]:.4f}]"
        assert re.search(rf"^\| \**{row['name']}\** \| {re.escape(wanted)} \|", card, re.MULTILINE)


def test_floats_in_place_of_int4_have_no_speedup(finished):
    card = (finished / "model_card.md").read_text()
    latency = card[card.index("## Latency") : card.index("## What was quantized")]
    assert re.search(r"^\| 1 \| \S+ s \| \S+ s \| none \|$", latency, re.MULTILINE)
    assert "the quantized weights were converted to floats, so" in latency


@pytest.mark.parametrize(
    ("left_out", "absent", "results"), [("mmlu", ["### MMLU", "lm_eval"], 0), ("divergence", ["same model?"], 1)]
)
def test_what_was_not_asked_is_not_on_the_card(finished, left_out, absent, results):
    settings = settings_of(finished)
    settings["evaluation"][left_out] = None
    summary = json.loads((finished / "summary.json").read_text())
    for row in summary["variants"]:
        row[left_out] = None
    (finished / "summary.json").write_text(json.dumps(summary))
    card = cards.render(finished, settings)
    for text in absent:
        assert text not in card
    assert len(ModelCard(card).data.eval_results or []) == results


def test_prompts_that_were_cut_are_said(finished):
    settings = settings_of(finished)
    assert "lost their beginning" not in cards.render(finished, settings)
    summary = json.loads((finished / "summary.json").read_text())
    index = [row["name"] for row in summary["variants"]].index("qat-int4")
    change(finished / "summary.json", "variants", index, "mmlu", "prompts_over_max_length", value=7)
    change(finished / "qat-int4" / "mmlu.json", "prompts_over_max_length", value=7)
    card = cards.render(finished, settings)
    length = json.loads((finished / "qat-int4" / "mmlu.json").read_text())["settings"]["max_length"]
    assert f"**7 of these questions, with their examples, are longer than the {length} tokens that" in card


def test_another_benchmark_is_shown_and_its_absence_said(finished):
    settings = settings_of(finished)
    assert "No other benchmark was run." in cards.render(finished, settings)
    kind = {"higher_is_better": True, "aggregation": "mean", "weight_by_size": None}
    summary, found = json.loads((finished / "summary.json").read_text()), {"value": 0.4321, "stderr": 0.0123}
    recovered = {"recovered": 0.5, "recovered_ci95": [0.4, 0.6]}
    for row in summary["variants"]:
        row["tasks"] = {"arc_challenge": {"metric": "acc_norm,none", "higher_is_better": True} | found | recovered}
        (finished / row["name"] / "tasks").mkdir()
        task = made_results.task({"acc_norm,none": kind | found})
        (finished / row["name"] / "tasks" / "arc_challenge.json").write_text(json.dumps(task))
    (finished / "summary.json").write_text(json.dumps(summary))
    source = f"hf://datasets/allenai/ai2_arc@{'a' * 40}"
    settings["evaluation"]["tasks"] = [{"task": "arc_challenge", "source": source, "metric": "acc_norm,none"}]
    card = cards.render(finished, settings)
    arc = ModelCard(card).data.eval_results[1]
    assert (arc.dataset_type, arc.metric_type, arc.metric_value) == ("allenai/ai2_arc", "acc_norm", 0.4321)
    assert "No other benchmark" not in card
    assert "| variant | arc_challenge, acc_norm,none | recovered |\n|---|---|---|\n" in card
    assert card.count(" | 0.4321 +- 0.0123 | 50% [40, 60] |\n") == 6
    change(finished / "qat-int4" / "tasks" / "arc_challenge.json", "metrics", "acc_norm,none", "value", value=0.5)
    with pytest.raises(
        InputError, match=r"qat-int4/tasks/arc_challenge.json: value: expected 0.4321, as in .*, found 0.5"
    ):
        cards.render(finished, settings)


@pytest.mark.parametrize(
    ("scheme", "expected", "scales"),
    [
        ({"symmetric": False, "zero_point": "float"}, "asymmetric with float zero points", "a scale and a zero point"),
        ({"symmetric": False, "zero_point": "integer"}, "asymmetric with integer zero points", "a scale and a zero"),
        ({"symmetric": True}, "symmetric", "a scale for every 64 inputs"),
    ],
)
def test_the_scheme_is_told_in_words(finished, scheme, expected, scales):
    settings = settings_of(finished)
    path = finished / "qat-int4" / "checkpoint" / "manifest.json"
    words = {
        key: value for key, value in json.loads(path.read_text())["scheme"].items() if key != "zero_point"
    } | scheme
    change(path, "scheme", value=words)
    settings["quantizations"]["int4"] = words | {"method": "rtn", "formats": ["torchao-plain"]}
    card = cards.render(finished, settings)
    assert f"QAT int4, weight only, {expected}, groups of 64, by `rtn`\n" in card
    assert "- **Stored as:** `torchao-plain`: `results/demo/qat-int4/checkpoint`\n" in card
    assert f"linear layers are in int4 ({scales}" in card


def test_with_several_references_the_table_names_each(finished):
    assert "measured against" not in (finished / "model_card.md").read_text()
    change(finished / "summary.json", "variants", 4, "quantized_baseline", value="base-w4a16")
    card = cards.render(finished, settings_of(finished))
    assert (
        "| variant | accuracy | normalized degradation | recovered | measured against "
        "| recovered of base-gptq's cost |\n"
        "|---|---|---|---|---|---|\n"
    ) in card
    assert re.search(r"^\| lora-int4 \| .* \| base-w4a16 \| .* \|$", card, re.MULTILINE)
    assert "b is base-bf16 and q is the quantized base that x is measured against" in card


@pytest.mark.parametrize(
    ("file", "keys", "value", "expected"),
    [
        ("summary.json", ["variants", 5, "mmlu", "accuracy_ci95"], None, "accuracy_ci95"),
        ("summary.json", ["contamination", "mmlu", "exact"], None, "exact"),
        ("summary.json", ["variants", 5, "mmlu", "accuracy"], 0.99, "qat-int4/mmlu.json: accuracy: expected "),
        ("qat-int4/memory.json", ["peak_gb"], 1.5, "qat-int4/memory.json: peak_gb: expected "),
        ("qat-int4/latency.json", ["batches", 0, "mean_s"], 9.9, "qat-int4/latency.json: mean_s: expected "),
        (
            "qat-int4/parity.json",
            ["relative_logit_difference"],
            9.9,
            "parity.json: relative_logit_difference: expected ",
        ),
        ("costs.json", ["total", "hours"], None, "hours"),
        (
            "qat-int4/mmlu.json",
            ["settings", "num_fewshot"],
            5,
            "qat-int4/mmlu.json: num_fewshot: expected 0, as in the config, found 5",
        ),
        (
            "qat-int4/checkpoint/manifest.json",
            ["scheme", "group_size"],
            32,
            "manifest.json: group_size: expected 64, as in the config, found 32",
        ),
        (
            "qat-int4/checkpoint/manifest.json",
            ["method"],
            "gptq",
            "manifest.json: method: expected rtn, as in the config, found gptq",
        ),
        ("qat-int4/checkpoint/manifest.json", ["weights_that_differ"], None, "weights_that_differ"),
    ],
)
def test_a_missing_or_stale_figure_is_an_error(finished, file, keys, value, expected):
    settings = settings_of(finished)
    change(finished / file, *keys, value=value)
    with pytest.raises(InputError, match=re.escape(expected)):
        cards.render(finished, settings)


def test_a_stale_divergence_is_an_error(finished):
    settings = settings_of(finished)
    change(finished / "qat-int4" / "divergence.json", "texts", "families", "kl", value=0.9)
    with pytest.raises(InputError, match=r"qat-int4/divergence.json: kl of families: expected .*, found 0.9"):
        cards.render(finished, settings)


def test_a_card_is_whole_or_as_it_was(finished):
    before = (finished / "model_card.md").read_bytes()
    arguments = ["--results", finished, "--settings", json.dumps(settings_of(finished))]
    (finished / "qat-int4" / "memory.json").unlink()
    result = run_script("model_card", *arguments, "--output", finished / "model_card.md")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("qat-int4/memory.json: expected a JSON file, found none")
    assert (finished / "model_card.md").read_bytes() == before


def test_the_commands_of_the_card_make_its_figures_again(small_run, finished):
    card = (finished / "model_card.md").read_text()
    commands = re.findall(r"^snakemake --profile profiles/demo (\S+) --forcerun (\w+)$", card, re.MULTILINE)
    assert [rule for _, rule in commands] == [
        *("evaluate_divergence", "evaluate_mmlu", "measure_memory", "measure_latency", "check_parity"),
        "quantize",
    ]
    targets, rules = zip(*commands, strict=True)
    plan = planned(small_run.snakemake("--dry-run", *targets, "--forcerun", *rules))
    assert {rule: plan[rule] for rule in rules} == dict.fromkeys(rules, 1)
    assert "finetune" not in plan


@pytest.mark.parametrize(
    ("device", "source", "expected"),
    [
        ("cpu", "standin", "profiles/demo"),
        ("cuda", "standin", "profiles/gpu --configfile profiles/demo/demo.yaml profiles/gpu/demo.yaml"),
        ("cuda", "hf://google/gemma-3-12b-it@0", "slurm"),
    ],
)
def test_the_card_names_what_started_the_run(device, source, expected):
    assert cards.profile({"device": device, "source": source}) == expected
