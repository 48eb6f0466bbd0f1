"""Test the table of quantizations: each mistake is one line, and each variant has a baseline."""

import copy

import pytest
import yaml

from configs import CARDS_ARMS, SCHEMA
from configs import with_cards_arms as changed
from int4_qat.config import quantizations, recipes, workflow_config
from int4_qat.quantization import schemes
from workflows import copy_workflow, snakemake

INT4 = CARDS_ARMS["quantizations"]["int4"]
SYMMETRIC = {key: value for key, value in INT4.items() if key != "zero_point"} | {"symmetric": True}


def table(**entries):
    """Return the card's config with more entries in its table."""
    return changed(["quantizations"], CARDS_ARMS["quantizations"] | entries)


def variants(*names):
    return changed(["variants"], ["base-bf16", "base-int4", "qat-int4", *names])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (table(**{"int-4": INT4}), "quantizations: expected a name of letters, digits, '.' and '_' (a variant's"),
        (table(bf16=INT4), "quantizations: expected a name other than bf16, the unquantized weights, found"),
        (changed(["quantizations"], {}), "quantizations: {} should be non-empty"),
        (table(x=INT4 | {"num_bits": 3}), "quantizations.x.num_bits: expected one of 4, found 3"),
        (
            table(x=INT4 | {"group_size": 100}),
            "quantizations.x.group_size: expected one of 32, 64, 128, 256",
        ),
        (table(x=INT4 | {"group_size": "all"}), "quantizations.x.group_size: expected a whole number, found 'all'"),
        (table(x=INT4 | {"strategy": "channel"}), "quantizations.x.strategy: expected one of 'group', found 'channel'"),
        (table(x=INT4 | {"method": "gpt"}), "quantizations.x.method: expected one of awq, gptq, rtn, found 'gpt'"),
        (
            table(x=INT4 | {"formats": ["gguf"]}),
            "quantizations.x.formats[0]: expected one of compressed-tensors, torchao-plain, found 'gguf'",
        ),
        (
            table(x=INT4 | {"formats": ["torchao-plain", "compressed-tensors"]}),
            "quantizations.x.formats[1]: expected int4 in groups with zero_point integer, or symmetric, as compr",
        ),
        (
            table(
                x=INT4
                | {"zero_point": "integer", "group_size": 256, "formats": ["torchao-plain", "compressed-tensors"]}
            ),
            "quantizations.x.formats[1]: expected groups of 32, 64 or 128, as compressed-tensors requires, found",
        ),
        (
            table(x=INT4 | {"symmetric": True}),
            "quantizations.x.zero_point: expected none, since symmetric is true, found",
        ),
        (
            table(x=SYMMETRIC | {"symmetric": False}),
            "quantizations.x.zero_point: expected float or integer, since symmetric is false, found none",
        ),
        (
            table(int4=INT4 | {"ignore": ["q_proj"]}),
            "quantizations.int4.ignore: expected all of k_proj, q_proj, v_proj or none, since vLLM makes one layer",
        ),
        (
            table(int4=INT4 | {"group_size": 64}),
            "finetune.arms.qat.quantization: expected int4, float zero point, groups of 128, with backend uns",
        ),
        (
            changed(["finetune", "arms", "qat", "quantization"], "int3"),
            "finetune.arms.qat.quantization: expected null or one of int4, w4a16, found 'int3'",
        ),
        (
            variants("base-int3"),
            "variants[3]: expected <base or lora or qat>-<bf16 or int4",
        ),
        (variants("base-w4a16", "qat-w4a16"), "variants[4]: expected 'qat-int4', in which the arm is trained, found"),
        (
            variants("lora-w4a16"),
            "variants: expected 'base-w4a16', against which arms and variants in w4a16 are measured, found none",
        ),
    ],
)
def test_each_mistake_is_one_line(config, expected):
    (line,) = workflow_config.problems(config, SCHEMA)
    assert line.startswith(expected)


def test_an_arm_without_a_quantization_is_exported_in_any():
    assert workflow_config.problems(variants("base-w4a16", "lora-w4a16", "lora-int4"), SCHEMA) == []


OLD = """
quantization: {scheme: int4, packing: plain, group_size: 128, skip: []}
quantizations: {x: {skip: []}}
finetune:
  arms:
    lora: {qat_scheme: null}
    qat: {qat_scheme: int4, distillation_weight: 0.5}
"""


def test_a_config_of_before_is_told_the_new_names(tmp_path):
    (tmp_path / "old.yaml").write_text(OLD)
    result = snakemake("--dry-run", "--configfile", tmp_path / "old.yaml")
    assert result.returncode != 0
    assert [line for line in result.stderr.splitlines() if line.startswith("config error: ")] == [
        "config error: quantization: expected `quantizations`, a table of named quantizations, whose `ignore` "
        "replaces `skip`",
        "config error: quantizations.x.skip: expected `ignore`, which takes the same names",
        *(
            f"config error: finetune.arms.{arm}.qat_scheme: expected `quantization` in each arm, which is a name from "
            "the table `quantizations` or null"
            for arm in ("lora", "qat")
        ),
        "config error: finetune.arms.qat.distillation_weight: expected `distillation`, which is null or a table "
        "with the weight",
    ]


def test_a_method_that_needs_more_than_it_is_given_is_refused(tmp_path):
    workflow = copy_workflow(tmp_path / "workflow")
    methods = workflow / "scripts" / "int4_qat" / "quantization" / "methods"
    (methods / "drawn.py").write_text('NEEDS = ("texts", "pictures")')
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"quantizations": CARDS_ARMS["quantizations"] | {"x": INT4 | {"method": "drawn"}}}))
    result = snakemake("--dry-run", "--directory", tmp_path / "run", "--configfile", path, workflow=workflow)
    assert (
        "quantizations.x.method: expected one that needs texts or nothing, found one that needs texts, pictures"
        in result.stderr
    )


def test_two_formats_of_one_folder_are_refused(tmp_path):
    workflow = copy_workflow(tmp_path / "workflow")
    formats = workflow / "scripts" / "int4_qat" / "quantization" / "formats"
    (formats / "other.py").write_text((formats / "torchao_plain.py").read_text())
    run = ["--dry-run", "--directory", tmp_path / "run", "--configfile", tmp_path / "mine.yaml"]
    table = CARDS_ARMS["quantizations"] | {"x": INT4 | {"formats": ["torchao-plain", "other"]}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"quantizations": table}))
    result = snakemake(*run, workflow=workflow)
    assert "quantizations.x.formats: expected formats with different folders, found" in result.stderr


def test_the_order_of_exceptions_is_no_other_scheme():
    one, other = (
        INT4 | {"ignore": names} for names in (["k_proj", "v_proj", "q_proj"], ["q_proj", "k_proj", "v_proj"])
    )
    names = ["base-bf16", "base-x", "base-y"]
    assert quantizations.rounded({"x": one, "y": other | {"method": "guess"}}, "y", names) == "x"
    assert quantizations.rounded({"x": one, "y": other}, "x", ["base-y"]) == "y"


def test_what_an_arm_is_trained_in_has_a_base_to_be_measured_against():
    config = changed(["variants"], ["base-bf16", "base-w4a16", "qat-bf16"])
    config["publish"]["variant"] = "base-w4a16"
    (line,) = workflow_config.problems(config, SCHEMA)
    assert line.startswith("variants: expected 'base-int4', against which arms and variants in int4 are measured")


def test_another_method_is_measured_against_rounding(tmp_path):
    """A file in the folder of the methods makes its name one that the config accepts."""
    workflow = copy_workflow(tmp_path / "workflow")
    methods = workflow / "scripts" / "int4_qat" / "quantization" / "methods"
    (methods / "guess.py").write_text((methods / "rtn.py").read_text())
    guessed = INT4 | {"method": "guess", "group_size": 64}
    mine = {"quantizations": {"int4": INT4, "guessed": guessed}, "variants": ["base-bf16", "base-int4", "base-guessed"]}
    mine |= {"publish": {"variant": "base-guessed"}, "finetune": {"arms": {}}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(mine))
    run = ["--dry-run", "--directory", tmp_path / "run", "--configfile", path]
    result = snakemake(*run, workflow=workflow)
    assert (
        "config error: quantizations: expected another quantization with the same scheme, the same ignore and method "
        "rtn, against which 'guessed' is measured, found none" in result.stderr.splitlines()
    )
    mine["quantizations"]["rounded"] = guessed | {"method": "rtn"}
    mine["variants"].append("base-rounded")
    path.write_text(yaml.safe_dump(mine))
    result = snakemake(*run, workflow=workflow)
    assert result.returncode == 0, result.stderr


def test_what_each_variant_is_measured_against():
    config = copy.deepcopy(variants("base-w4a16", "lora-w4a16", "lora-bf16", "qat-bf16"))
    assert quantizations.references(recipes.settings_of(config, "gemma-3-12b-it")) == {
        "base-bf16": "base-int4",
        "base-int4": "base-int4",
        "qat-int4": "base-int4",
        "base-w4a16": "base-w4a16",
        "lora-w4a16": "base-w4a16",
        "lora-bf16": "base-int4",
        "qat-bf16": "base-int4",
    }


def test_the_schema_has_the_values_of_the_schemes():
    entry = SCHEMA["properties"]["quantizations"]["additionalProperties"]["properties"]
    allowed = {key: tuple(entry[key].get("enum", (True, False))) for key in schemes.VALUES}  # symmetric is a boolean
    assert allowed == schemes.VALUES
    assert entry["zero_point"]["enum"] == [schemes.FLOAT, schemes.INTEGER]
