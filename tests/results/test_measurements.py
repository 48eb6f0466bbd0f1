"""Test that the config determines what is measured of each variant, and that result files match their classes."""

import copy
import json
import re
from typing import is_typeddict

import pytest

import made_results
from configs import CARD, demo_config
from int4_qat.config import quantizations, workflow_config
from int4_qat.results import against_baseline, card_checks, measured_files, measurements
from int4_qat.results.schema.task import Metric
from int4_qat.system.errors import InputError


def names(config):
    return {variant: [one.name for one in found] for variant, found in measurements.asked(config).items()}


def test_the_config_says_what_is_measured():
    usual = ["divergence", "mmlu", "memory", "latency"]
    assert names(demo_config()) == {
        "base-bf16": usual,
        "base-int4": usual,
        "base-gptq": usual,
        "lora-bf16": usual,
        "lora-int4": [*usual, "parity"],
        "qat-int4": [*usual, "parity"],
        "qad-int4": [*usual, "parity"],
    }
    with_all = names(CARD)
    assert with_all["base-bf16"] == ["divergence", "mmlu", "arc_challenge", "chartqa", "memory", "latency"]
    assert with_all["lora-bf16"] == ["divergence", "mmlu", "arc_challenge", "memory", "latency"]
    everything = ["divergence", "mmlu", "arc_challenge", "chartqa", "memory", "latency", "parity", "serving"]
    assert with_all["qad-w4a16"] == everything
    assert with_all["qat-int4"] == [name for name in everything if name not in ("latency", "serving")]


def test_what_vllm_does_not_serve_says_why():
    reason = "vllm computes with int4 in compressed-tensors, which is not among its formats"
    both, unserved = {"latency": reason, "serving": reason}, ("base-int4", "lora-int4", "qat-int4")
    assert measurements.not_served(CARD) == dict.fromkeys(unserved, both)
    config = copy.deepcopy(CARD)
    config["evaluation"]["latency"]["engine"] = "transformers"
    assert measurements.not_served(config) == {name: {"serving": reason} for name in unserved}
    assert names(config)["qat-int4"][-2:] == ["latency", "parity"]
    assert measurements.not_served(demo_config()) == {}


def test_what_the_config_leaves_out_is_not_measured():
    config = copy.deepcopy(CARD)
    config["evaluation"] |= {"chartqa": None, "serving": None, "tasks": []}
    usual = ["divergence", "mmlu", "memory", "latency"]
    config["evaluation"]["latency"]["engine"] = "transformers"
    compared = {variant: [*usual, "parity"] for variant in ("lora-int4", "qat-int4", "qad-w4a16")}
    assert names(config) == dict.fromkeys(CARD["variants"], usual) | compared
    config["evaluation"] |= {"divergence": None, "mmlu": None, "questions": [{"name": "own"}]}
    assert names(config)["base-bf16"] == ["own", "memory", "latency"]


def test_no_task_may_have_the_name_of_a_measurement():
    assert set(workflow_config.MEASURED) == {one.name for one in measurements.table((), {})}


def test_of_other_variants_publishing_needs_less():
    needed = measurements.to_publish(measurements.asked(CARD), "qad-w4a16")
    assert needed["qad-w4a16"] == measurements.asked(CARD)["qad-w4a16"]
    assert [one.name for one in needed["base-w4a16"]] == [
        "divergence",
        "mmlu",
        "arc_challenge",
        "chartqa",
        "memory",
        "latency",
    ]


def test_serving_is_no_part_of_the_summary():
    shown = measurements.summarized(measurements.asked(CARD))
    assert measured_files.paths({"qad-w4a16": shown["qad-w4a16"]}) == [
        "qad-w4a16/divergence.json",
        "qad-w4a16/divergence_samples.parquet",
        "qad-w4a16/mmlu.json",
        "qad-w4a16/mmlu_samples.parquet",
        "qad-w4a16/tasks/arc_challenge.json",
        "qad-w4a16/tasks/arc_challenge_samples.parquet",
        "qad-w4a16/chartqa.json",
        "qad-w4a16/chartqa_samples.parquet",
        "qad-w4a16/memory.json",
        "qad-w4a16/latency.json",
        "qad-w4a16/parity.json",
    ]


def test_names_stand_for_measurements():
    shown = measurements.asked(CARD)
    names = json.loads(measurements.to_json(shown))
    assert measurements.of_names(names, [], {"arc_challenge": "acc_norm,none"}) == shown
    with pytest.raises(InputError, match=r"--measured: expected one of divergence, mmlu, .*, found 'arc_challenge'"):
        measurements.of_names(names, [], {})


def test_every_key_that_the_table_names_is_in_the_class():
    for one in measurements.table(["own"], {"arc_challenge": "acc_norm,none"}):
        keys = one.schema.__required_keys__
        keys |= {"metric", *Metric.__required_keys__} if one.metric else set()
        assert {*one.conditions, *one.kept} <= keys
        assert set(one.printed) <= set(one.columns)


def test_a_missing_key_is_a_line(results):
    path = results / "qat-int4" / "memory.json"
    content = json.loads(path.read_text())
    del content["peak_gb"]
    path.write_text(json.dumps(content))
    (memory,) = (one for one in measurements.OTHERS if one.name == "memory")
    with pytest.raises(InputError, match=re.escape(f"{path}: expected the key peak_gb, found measure, ")):
        measured_files.read(path.parent, memory)


def differences(content, kind, place):
    """Yield the places where content does not have the keys of kind: a class, or a list or mapping of one."""
    arguments = getattr(kind, "__args__", ())
    if is_typeddict(kind):
        if content.keys() != kind.__annotations__.keys():
            yield f"{place}: {sorted(content.keys() ^ kind.__annotations__.keys())}"
        for key in content.keys() & kind.__annotations__.keys():
            yield from differences(content[key], kind.__annotations__[key], f"{place}.{key}")
    elif arguments and is_typeddict(arguments[-1]):
        for item in content.values() if isinstance(content, dict) else content:
            yield from differences(item, arguments[-1], place)


def test_the_files_of_a_run_hold_what_their_classes_say(small_run):
    results = small_run.directory / "results" / "demo"
    settings = json.loads((results / "provenance.json").read_text())["settings"]
    asked = measurements.asked(settings)
    assert len(measured_files.paths(asked)) == 6 * 6 + 2
    for variant, found in asked.items():
        for one in found:
            content = json.loads((results / variant / one.file).read_text())
            assert list(differences(content, one.schema, one.file)) == []


def test_an_order_of_ignored_modules_is_no_difference(tmp_path):
    """quantize sorts them, and the card compares its manifest with the config."""
    entry = demo_config()["quantizations"]["int4"] | {"ignore": ["q_proj", "k_proj", "v_proj"]}
    folder = tmp_path / "base-int4"
    (folder / "checkpoint").mkdir(parents=True)
    words = quantizations.training_words(entry)
    manifest = words | {"method": "rtn", "format": "torchao-plain"}
    (folder / "checkpoint" / "manifest.json").write_text(json.dumps(manifest))
    card_checks.check_quantization(folder, {"quantizations": {"int4": entry}})
    with pytest.raises(InputError, match="ignore: expected"):
        card_checks.check_quantization(folder, {"quantizations": {"int4": entry | {"ignore": ["down_proj"]}}})


def test_speedups_are_of_the_same_batch_sizes():
    one = made_results.latency(in_bf16=False)
    other = copy.deepcopy(one)
    other["batches"][1]["batch_size"] = 8
    with pytest.raises(InputError, match=r"batches: expected the batch sizes \[1, 256\] of base-bf16, found \[1, 8\]"):
        against_baseline.speedups(other, one)
