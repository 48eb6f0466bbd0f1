"""Write docs/config-reference.md: the type, the default and the meaning of every key of the config.

Keys and types come from rules/config.schema.yaml and the settings of a training (`int4_qat/config/schema.py`), defaults
from config.yaml. A key's description is its entry in MEANINGS, or else its comment in config.yaml or, for keys that
config.yaml lacks, in profiles/demo/demo.yaml.

    python docs/config_reference.py          # writes the page
    python docs/config_reference.py --check  # stops with one line if the page is out of date
"""

import argparse
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from int4_qat.config import schema as config_schema

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "config-reference.md"
CONFIG = ROOT / "config.yaml"
DEMO = ROOT / "profiles" / "demo" / "demo.yaml"
ENTRY, ITEM = "<name>", "[]"  # the steps of a path into the entries of a table, and into the items of a list
ARM = "#/$defs/arm"  # takes the settings of `finetune`, which the page lists once
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
HEAD = """# Config reference

`python docs/config_reference.py` writes this page from `rules/config.schema.yaml` and `config.yaml`; do not edit it.
[config.md](config.md) explains how the layers of a config are merged and what the larger sections do.

The default is the value in `config.yaml`; for a table or list of entries it is their names. Where `config.yaml` has no
value, `required` marks a key that its table must have, and `optional` one that it may leave out. `<name>` stands for a
name of your choice, and `[]` for an item of a list.
"""
# Descriptions of keys whose comment in config.yaml is missing, or needs its neighbours to be understood.
MEANINGS = {
    "models": "the models of the run; each goes through all stages",
    "models.<name>.source": "where the model comes from",
    "data": "the questions to train on and to score",
    "data.source": "MMLU, or questions in one of its two layouts",
    "data.license": "license of the questions, for the model card",
    "finetune": "the settings of the training; every arm uses them, except where it has its own",
    "finetune.backend": "training library; `unsloth` needs a GPU, only `transformers` has every `qat_target`",
    "finetune.r": "rank of the LoRA adapter",
    "finetune.lora_alpha": "scale of the adapter: its product is multiplied by `lora_alpha / r`",
    "finetune.lora_dropout": "dropout on the adapter's input; 0 with `qat_target: merged`",
    "finetune.finetune_vision_layers": "must be false, since the training texts hold no pictures",
    "finetune.dtype": "number format in which the model is loaded",
    "finetune.max_seq_length": "maximum tokens per row; a longer question is cut, and `packing` fills every row",
    "finetune.response_part": "the mark at which a response begins; see `instruction_part`",
    "finetune.train_batch_size": "rows per step, over all GPUs",
    "finetune.gradient_accumulation_steps": "number of passes into which each GPU divides its rows of a step",
    "finetune.gradient_checkpointing": "recompute activations in the backward pass, which saves memory and takes time",
    "finetune.warmup_steps": "number of steps in which the learning rate rises to its maximum",
    "finetune.num_train_epochs": "has no effect, since `max_steps` decides when a training ends",
    "finetune.max_steps": "number of training steps",
    "finetune.learning_rate": "maximum learning rate of the adapter",
    "finetune.logging_steps": "number of steps between two rows of `training.csv`; at most `max_steps`",
    "finetune.save_steps": "number of steps between two checkpoints, from which an interrupted training resumes",
    "finetune.optim": "the optimizer; `adamw_8bit` needs a GPU",
    "finetune.weight_decay": "weight decay of the optimizer",
    "finetune.lr_scheduler_type": "course of the learning rate after the warm-up",
    "finetune.seed": "seed of the adapter's initial weights and of the order of the rows",
    "finetune.distillation.weight": "share of the KL in the loss; the cross-entropy has the rest",
    "finetune.distillation.tokens": "the tokens whose predictions are compared",
    "finetune.distillation.temperature": "temperature by which the logits of both models are divided",
    "finetune.texts.<name>": "weight of the text",
    "finetune.allow_worse": "true accepts a training that ends further from the base than it began; see `eval_steps`",
    "finetune.arms": "the arms by name, each with the keys in which it differs from `finetune`",
    "finetune.arms.<name>.quantization": "the quantization that the training simulates, whose method needs no texts "
    "(`rtn`); null trains without one; `start` begins at a calibrated base",
    "finetune.arms.<name>.start": "the arm's own `finetune.start`",
    "quantizations.<name>.type": "type of the codes",
    "quantizations.<name>.num_bits": "bits of a code",
    "quantizations.<name>.symmetric": "whether the codes are symmetric about zero, without zero points",
    "quantizations.<name>.zero_point": "kind of zero points; required if `symmetric` is false",
    "quantizations.<name>.strategy": "the weights that share a scale: a group of weights in a row of the matrix",
    "quantizations.<name>.group_size": "number of weights per group",
    "quantizations.<name>.method": "method to find the codes: a file in `scripts/int4_qat/quantization/methods/`",
    "quantizations.<name>.formats": "formats to write, one folder each, from `scripts/int4_qat/quantization/formats/`; "
    "`torchao-plain` is required",
    "quantizations.<name>.ignore": "modules that stay in bf16, by a full name or parts of one",
    "variants": "the variants to measure, each named by base or an arm, a hyphen, and bf16 or a quantization",
    "texts.<name>.source": "where the files come from",
    "texts.<name>.files": "pattern of the files to read, relative to the source",
    "texts.<name>.column": "column or JSON key that holds a text; `text` if omitted",
    "texts.<name>.license": "license of the text, for the model card",
    "texts.<name>.messages": "column or JSON key that holds a conversation, in place of `column`",
    "calibration.texts": "`questions`, and names from `texts`",
    "calibration.batch_size": "number of windows that pass through a layer at once",
    "calibration.dtype": "number format in which the layers compute",
    "calibration.seed": "seed that decides which windows are drawn",
    "evaluation": "the measurements of the variants",
    "evaluation.divergence.texts": "held-out texts, on which nothing is trained or calibrated",
    "evaluation.divergence.texts.<name>.source": "where the files come from",
    "evaluation.divergence.texts.<name>.files": "pattern of the files to read, relative to the source",
    "evaluation.divergence.texts.<name>.column": "column or JSON key that holds a text; `text` if omitted",
    "evaluation.divergence.limit": "maximum number of tokens per text; null for all",
    "evaluation.divergence.dtype": "number format of the forward passes",
    "evaluation.mmlu.engine": "`stock` is lm-eval's own code; `last_position` gives the same scores faster",
    "evaluation.mmlu.num_fewshot": "number of examples before each question",
    "evaluation.mmlu.dtype": "number format in which the model is loaded",
    "evaluation.questions[].name": "name of the set, in results and as a headline",
    "evaluation.questions[].source": "the folder or parquet file with the questions",
    "evaluation.questions[].engine": "see `evaluation.mmlu.engine`",
    "evaluation.questions[].num_fewshot": "number of examples before each question",
    "evaluation.questions[].limit": "number of questions per group; null for all",
    "evaluation.questions[].batch_size": "see `evaluation.mmlu.batch_size`",
    "evaluation.questions[].dtype": "number format in which the model is loaded",
    "evaluation.tasks[].task": "lm-eval's name of the task or group",
    "evaluation.tasks[].source": "the data set, on the Hub or in a folder with the same layout",
    "evaluation.tasks[].metric": "the metric for the summary",
    "evaluation.tasks[].engine": "as `evaluation.mmlu.engine`, for choices of any length; all else that a task asks is "
    "lm-eval's own code",
    "evaluation.tasks[].num_fewshot": "number of examples before each question",
    "evaluation.tasks[].batch_size": "requests that stock processes at once; see `evaluation.mmlu.batch_size`",
    "evaluation.tasks[].dtype": "number format in which the model is loaded",
    "evaluation.chartqa.source": "the data set, on the Hub or in a folder with the same layout",
    "evaluation.chartqa.limit": "number of questions, counted from the first; null for all",
    "evaluation.chartqa.batch_size": "number of questions asked at once",
    "evaluation.chartqa.time_limit": "seconds allowed for lmms-eval",
    "evaluation.memory": "the peak memory while the model generates a text",
    "evaluation.memory.max_new_tokens": "number of tokens to generate",
    "evaluation.memory.dtype": "number format in which the model is loaded",
    "evaluation.latency": "the time to generate a fixed number of tokens",
    "evaluation.latency.engine": "the engine to measure; `formats` of a quantization says what vLLM can load",
    "evaluation.latency.input_len": "number of tokens in the prompt",
    "evaluation.latency.output_len": "number of tokens to generate",
    "evaluation.latency.batch_sizes": "requests at once; the summary shows the first number, which is 1 on the card",
    "evaluation.latency.warmup": "number of iterations that are not counted",
    "evaluation.latency.iterations": "number of iterations that are counted, in each repeat",
    "evaluation.latency.repeats": "number of measurements of each batch size, which show the spread",
    "evaluation.latency.dtype": "number format in which the model is loaded",
    "evaluation.latency.vllm_arguments": "more arguments for `vllm bench latency`",
    "evaluation.latency.vllm_time_limit": "seconds allowed for one run of vLLM",
    "evaluation.serving.dtype": "number format in which the model is loaded",
    "evaluation.serving.max_tokens": "maximum number of tokens per answer",
    "evaluation.serving.vllm_arguments": "more arguments for `vllm serve`; the card's are the default",
    "plots": "settings of the plots",
    "plots.colours.<name>": "colour of `base` or of an arm",
    "publish.variant": "the variant to publish, which must be quantized",
    "publish.private": "whether a new repository is private",
    "publish.license": "the Hub's name of the base model's license",
    "publish.license_link": "address of the license's terms",
    "publish.thresholds.recovered_at_least": "minimum for the low end of the interval of `recovered`",
    "publish.thresholds.lost_at_most": "maximum for the high end of the interval of the loss from base-bf16",
    "standin": "the settings of the demo's stand-in model, for a config with a source `standin`",
    "standin.seed": "seed of the invented facts and of the training",
    "standin.int4_cost": "accuracy that int4 must cost the stand-in; its outlier channels are enlarged until it does",
}


class Row(NamedTuple):
    """One line of the page's tables; all fields are Markdown."""

    key: str
    type: str
    default: str
    description: str


class Shown(NamedTuple):
    """One key as a config file shows it, in Markdown."""

    value: str  # as written, if it is on one line; of a list of tables their names
    entries: str  # of a table on several lines its keys
    comment: str  # the comment above the key and the one behind its value


class Reference(NamedTuple):
    """What the page is written from. Keys are named as on the page."""

    schema: dict
    config: dict[str, Shown]  # the keys of config.yaml, in its order
    described: dict[str, Shown]  # the keys of config.yaml, then further keys of the demo's config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    check = parser.parse_args().check
    config = read(CONFIG)
    text = page(Reference(config_schema.read(ROOT), config, read(DEMO) | config))
    if stale := [key for key in MEANINGS if f"`{key}`" not in text and f"## {key}\n" not in text]:
        sys.exit(f"docs/config_reference.py: MEANINGS has keys that the schema lacks: {', '.join(stale)}")
    if check and not (PAGE.exists() and PAGE.read_text(encoding="utf-8") == text):
        sys.exit("docs/config-reference.md is out of date: run `python docs/config_reference.py`")
    if not check:
        PAGE.write_text(text, encoding="utf-8")


def page(reference: Reference) -> str:
    """Return the page: a section for each key at the top of the config."""
    parts = [HEAD]
    for name, node, need in children(reference, reference.schema, ""):
        first, *rest = rows(reference, node, name, need)
        # The row of a table with fixed keys would have no default, and its description is above.
        table = rest if (first.type, first.default) == ("table", "") else [first._replace(description=""), *rest]
        parts += [f"## {name}\n", f"{first.description[0].upper()}{first.description[1:].removesuffix('.')}.\n"]
        parts += ["| key | type | default | description |", "|---|---|---|---|"]
        parts += [*(f"| {' | '.join(row)} |" for row in table), ""]
    return "\n".join(parts)


def rows(reference: Reference, node: dict, key: str, need: str) -> Iterator[Row]:
    """Yield the row of a key and those of all keys below it.

    `need` is shown where config.yaml has no value. Exits with one line if the key has no description.
    """
    own = resolved(reference.schema, node)
    description = markdown(MEANINGS.get(key, "")) or (key in reference.described and reference.described[key].comment)
    if not description:
        sys.exit(f"{key}: expected a comment in config.yaml, or an entry in MEANINGS of docs/config_reference.py")
    default = need
    if key in reference.config and ENTRY not in key and ITEM not in key:
        shown = reference.config[key]
        default = shown.value or (shown.entries if isinstance(own.get("additionalProperties"), dict) else "")
    yield Row(code(key), kind(reference.schema, node), default, description)
    yield from below(reference, own, key)


def below(reference: Reference, own: dict, key: str) -> Iterator[Row]:
    """Yield the rows of the keys of a table, and of those in the entries of a table or the items of a list."""
    for name, node, need in children(reference, own, f"{key}."):
        yield from rows(reference, node, f"{key}.{name}", need)
    for step, entry in ((f".{ENTRY}", own.get("additionalProperties")), (ITEM, own.get("items"))):
        if not isinstance(entry, dict):
            continue
        inner = resolved(reference.schema, entry)
        if "properties" in inner:
            yield from below(reference, inner, f"{key}{step}")
        elif step != ITEM:
            yield from rows(reference, entry, f"{key}{step}", "")
        if entry.get("$ref") == ARM:
            rest = "any other key of `finetune` except `arms` and `report_to`, for this arm alone"
            yield Row(code(f"{key}{step}.<setting>"), "as in `finetune`", "that of `finetune`", rest)


def children(reference: Reference, own: dict, prefix: str) -> Iterator[tuple[str, dict, str]]:
    """Yield the keys of a table, each with its schema and whether it is required, in the order of config.yaml."""
    order = {key: place for place, key in enumerate(reference.config)}
    properties = own.get("properties", {})
    for name in sorted(properties, key=lambda name: order.get(f"{prefix}{name}", len(order))):
        yield name, properties[name], "required" if name in own.get("required", []) else "optional"


def resolved(schema: dict, node: dict) -> dict:
    """Return a node together with the definition that it refers to; of an arm only its own keys."""
    if "$ref" not in node:
        return node
    target = schema["$defs"][node["$ref"].rpartition("/")[2]]
    if node["$ref"] == ARM:
        target = {word: value for word, value in target.items() if word != "$ref"}
    target = resolved(schema, target)
    properties = target.get("properties", {}) | node.get("properties", {})
    return target | node | ({"properties": properties} if properties else {})


def kind(schema: dict, node: dict) -> str:
    """Return the type of a value in words, with its limits."""
    own = resolved(schema, node)
    types = own.get("type", [])
    types = [types] if isinstance(types, str) else types
    (word,) = [word for word in types if word != "null"] or [""]
    nullable = " or null" if "null" in types else ""
    if "enum" in own:
        return ", ".join(code(str(value)) for value in own["enum"]) + nullable
    if word == "array":
        least = f", at least {own['minItems']}" if own.get("minItems", 0) > 1 else ""
        return re.sub(r"^list of (\w+)", r"list of \1s", f"list of {kind(schema, own['items'])}") + least + nullable
    if word == "object":
        by_name = isinstance(own.get("additionalProperties"), dict)
        return "table" + " by name" * by_name + nullable + rules_of(name_rules(schema, own))
    limits = ", ".join(f"{sign} {own[key]}" for key, sign in LIMITS.items() if key in own)
    rule = [own["description"]] if "description" in own else []
    return " ".join(filter(None, [word, markdown(limits)])) + nullable + rules_of(rule)


def name_rules(schema: dict, own: dict) -> list[str]:
    """Return what a schema asks of the names of a table's entries."""
    names = own.get("propertyNames", {})
    parts = [resolved(schema, part) for part in names.get("allOf", [names])]
    return [part["description"] for part in parts if "description" in part]


def rules_of(rules: list[str]) -> str:
    """Return rules as the end of a type."""
    return f": {markdown('; '.join(rules))}" if rules else ""


def read(path: Path) -> dict[str, Shown]:
    """Return every key of a config file; of keys in entries and items the first of each name."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    found: dict[str, Shown] = {}

    def walk(node: yaml.Node, key: str) -> None:
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                walk(item, f"{key}{ITEM}")
        elif isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                child = f"{key}.{name.value}".removeprefix(".")
                found.setdefault(child, Shown(written(text, value), keys(value), comment(lines, name, value)))
                walk(value, child)
                walk(value, f"{key}.{ENTRY}".removeprefix("."))

    walk(yaml.compose(text), "")
    return found


def written(text: str, node: yaml.Node) -> str:
    """Return a value as the file has it if it is on one line, and of a list of tables the first value of each."""
    if isinstance(node, yaml.ScalarNode) or node.flow_style:
        return code(" ".join(text[node.start_mark.index : node.end_mark.index].split()))
    return ", ".join(code(item.value[0][1].value) for item in node.value) if isinstance(node, yaml.SequenceNode) else ""


def keys(node: yaml.Node) -> str:
    """Return the keys of a table."""
    return ", ".join(code(name.value) for name, _ in node.value) if isinstance(node, yaml.MappingNode) else ""


def comment(lines: list[str], key: yaml.Node, value: yaml.Node) -> str:
    """Return the comment of a key: the lines above it that begin in its column, and what follows its value."""
    row, column = key.start_mark.line, key.start_mark.column
    above: list[str] = []
    while row > 0 and lines[row - 1].startswith(f"{' ' * column}#"):
        row -= 1
        above.insert(0, lines[row][column + 1 :].removeprefix(" "))
    # Where the comment sets lines in, as a list of examples, they stay lines of their own.
    breaks = [line.startswith("  ") or before.startswith("  ") for before, line in pairwise(["", *above])]
    text = "".join(
        ("<br>" if apart else " ") + markdown(line.strip()) for apart, line in zip(breaks, above, strict=True)
    )
    end = value.end_mark if isinstance(value, yaml.ScalarNode) or value.flow_style else key.end_mark
    behind = re.match(r":?\s+#\s*(.*)", lines[end.line][end.column :])
    return " ".join(filter(None, [text.strip(), markdown(behind[1]) if behind else ""]))


def markdown(text: str) -> str:
    """Return plain text for a cell of a table; what is between backticks stays code."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_])", r"\\\1", part.replace("<", "&lt;")).replace("|", "&#124;") for part in parts[::2]]
    return "`".join(parts)


def code(text: str) -> str:
    """Return text as code for a cell of a table, in which a `|` would end the cell."""
    return f"<code>{text.replace('<', '&lt;').replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


if __name__ == "__main__":
    main()
