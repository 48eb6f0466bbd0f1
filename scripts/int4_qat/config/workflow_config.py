"""The config of a run, checked before anything runs: each mistake is one line that names the key."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from snakemake.common.configfile import load_configfile

from int4_qat.config import (
    calibration,
    config_values,
    layers,
    limits,
    metric_names,
    model_facts,
    named_texts,
    quantizations,
    recipes,
    schema,
    schema_errors,
    variants,
)
from int4_qat.config.recipes import STANDIN
from int4_qat.system import sources

OF_QAT = ("qat_target", "grid_learning_rate", "eval_steps")  # settings of what is trained in a quantization
# Settings of a training in earlier versions, and what took their place.
OLD_SETTINGS = {
    "qat_scheme": "`quantization` in each arm, a name from the table `quantizations` or null",
    "distillation_weight": "`distillation`, null or a mapping that has the weight",
    "per_device_train_batch_size": "`train_batch_size`, the rows of a step on all GPUs together",
}
DATA_REPORT = Path("resources/mmlu/report.json")  # of download_mmlu
MODELS = Path("resources/models")  # of download_model, with the facts of each in <model>.json
# What no set of questions and no task may be called; a test holds them against the measurements.
MEASURED = ("divergence", "mmlu", "chartqa", "memory", "latency", "parity", "serving")


def of_run(workflow: str, given: Mapping, overrides: Mapping, configfiles: Iterable[Path | str]) -> dict:
    """Return the checked config of a run of the workflow in a folder, whose config.yaml is the lowest layer.

    `given` is everything as Snakemake merges it, `overrides` what --config gave of it, `configfiles` what was read.
    """
    config = layers.of_run(load_configfile(f"{workflow}/config.yaml"), given, overrides)
    check(config, workflow, configfiles)
    return config


def refuse_gpus(config: dict, counts: dict[str, int], available: int | None) -> None:
    """End the program with a line for each stage that cannot use as many GPUs as it is given; others have one.

    available is how many GPUs a run has, None where a cluster hands them out.
    """
    one = list(limits.ONE_GPU)
    latency = config["evaluation"]["latency"]
    if latency and latency["engine"] != quantizations.VLLM:
        one.append("measure_latency")
    found = [f"{rule}: expected gpu: 1, found {counts[rule]}" for rule in one if counts.get(rule, 1) > 1]
    if available is not None:
        more = {rule: count for rule, count in counts.items() if count > available}
        found += [f"{rule}: expected at most the {available} of `resources: gpu`, found {more[rule]}" for rule in more]
    for name in recipes.arms_of(config):
        problems = limits.unshared(recipes.recipe_of(config, name), counts.get("finetune", 1))
        found += [f"finetune.arms.{name}.{line}" for line in problems]
    if found:
        sys.exit("\n".join(f"config error: {line}" for line in found))


def check(config: dict, workflow: str, configfiles: Iterable[Path | str]) -> None:
    """Put the config's values into the form that all rules see; end the program with a line for each that is wrong."""
    rules = schema.read(workflow)
    found = [f"the workflow's folder: Snakemake takes no braces in {workflow!r}"] if {"{", "}"} & set(workflow) else []
    found += list(dict.fromkeys(line for path in configfiles for line in config_values.hidden_problems(path)))
    found = found or list(config_values.odd_keys(config))
    found = found or list(_old_keys(config))
    if not found:
        config_values.normalise(config, rules)
        found = problems(config, rules)
    if found:
        sys.exit("\n".join(f"config error: {line}" for line in found))


def problems(config: dict, rules: dict) -> list[str]:
    """What is wrong, a line each; the schema comes first, since the rest relies on it."""
    lines = schema_errors.lines(config, rules) or [
        *_missing_sources(config),
        *_taken_names(config),
        *quantizations.problems(config["quantizations"]),
    ]
    lines = lines or list(_untrainable(config)) or list(_unknown_variants(config))
    lines = lines or list(calibration.problems(config)) or list(named_texts.problems(config))
    lines = lines or [
        *metric_names.problems(config["evaluation"]),
        *_missing_references(config),
        *_misfits(config),
        *_idle_words(config),
        *_served_in_float32(config),
        *_split_layers(config),
        *_too_few_examples(config),
        *_misfits_of_models(config),
    ]
    return lines or [*_unpublishable(config), *_idle_threshold(config)]


def _missing_sources(config: dict) -> list[str]:
    evaluation = config["evaluation"]
    made = {f"models.{name}.source": model["source"] for name, model in config["models"].items()}
    made["data.source"] = config["data"]["source"]
    texts = metric_names.texts(evaluation)
    made |= {f"evaluation.divergence.texts.{name}.source": text["source"] for name, text in texts.items()}
    made |= {f"texts.{name}.source": text["source"] for name, text in config["texts"].items()}
    named = made | {
        f"evaluation.{table}[{index}].source": entry["source"]
        for table in ("questions", "tasks")
        for index, entry in enumerate(evaluation[table])
    }
    if evaluation["chartqa"]:
        named["evaluation.chartqa.source"] = evaluation["chartqa"]["source"]
    return [line for key, source in named.items() for line in _wrong_source(config, key, source, key in made)]


def _wrong_source(config: dict, key: str, source: str, has_standin: bool) -> list[str]:
    if source == STANDIN and has_standin:
        return [] if STANDIN in config else [f"{key}: is '{STANDIN}', but the config has no section '{STANDIN}'"]
    if not source.startswith("hf://"):
        if lines := list(_written_by_the_run(key, source)):
            return lines
        is_table = key.startswith("evaluation.questions") and source.endswith(".parquet")
        if not (os.path.isfile(source) if is_table else os.path.isdir(source)):
            kind = "file" if is_table else "folder"
            return [f"{key}: expected an existing {kind}, found none at {source!r}"]
        return list(_wildcards(key, [source, *sources.local_files(source)]))
    kind = "" if key.startswith("models.") else "datasets/"
    expected = f"hf://{kind}<owner>/<name>@<commit>"
    is_dataset = source.startswith("hf://datasets/")
    return [] if is_dataset == bool(kind) else [f"{key}: expected {expected}, found '{source}'"]


def _written_by_the_run(key: str, source: str) -> Iterator[str]:
    """Yield a line if a source is inside a folder to which the workflow writes, or contains one."""
    place, written = Path(source).resolve(), {name: Path(name).resolve() for name in sources.WRITTEN}
    inside = next((name for name, folder in written.items() if place.is_relative_to(folder)), None)
    if inside:
        yield f"{key}: the workflow writes to '{inside}'; keep '{source}' elsewhere"
    elif any(folder.is_relative_to(place) for folder in (Path.cwd(), *written.values())):
        yield f"{key}: expected a folder that does not hold the run or its results, found '{source}'"


def _wildcards(key: str, paths: Iterable[str]) -> Iterator[str]:
    """The first path that Snakemake would misread; there is no way to tell it not to."""
    for path in filter(sources.has_wildcard, paths):
        yield f"{key}: expected no word in braces, which is a wildcard to Snakemake, found {path!r}"
        return


def _taken_names(config: dict) -> Iterator[str]:
    """Tasks and sets of questions with the name of something else that is measured."""
    taken = set(MEASURED)
    for table, key in (("tasks", "task"), ("questions", "name")):
        for index, entry in enumerate(config["evaluation"][table]):
            name = entry[key]
            if name in MEASURED:
                yield f"evaluation.{table}[{index}].{key}: '{name}' is measured by a rule of its own"
            elif name in taken:
                yield f"evaluation.{table}[{index}].{key}: '{name}' is in the list already"
            taken.add(name)


def _untrainable(config: dict) -> Iterator[str]:
    """Arms whose training would see a quantization that there is not, or whose codes only a method with texts finds."""
    table = config["quantizations"]
    trainable = [name for name, entry in table.items() if not quantizations.is_calibrated(entry)]
    for arm, changes in config["finetune"]["arms"].items():
        if changes["quantization"] not in (None, *trainable):
            expected = f"null or one of {', '.join(trainable)}, whose methods need no texts"
            yield f"finetune.arms.{arm}.quantization: expected {expected}, found '{changes['quantization']}'"


def _unknown_variants(config: dict) -> Iterator[str]:
    """Variants that nothing produces: an arm that was trained in a quantization is exported in that one alone."""
    arms, table = config["finetune"]["arms"], config["quantizations"]
    known, precisions = [variants.BASE, *arms], [variants.BF16, *table]
    for index, name in enumerate(config["variants"]):
        weights, _, precision = name.rpartition("-")
        trained = arms.get(weights, {}).get("quantization")
        if weights not in known or precision not in precisions:
            expected = f"<{' or '.join(known)}>-<{' or '.join(precisions)}>"
            yield f"variants[{index}]: nothing produces '{name}'; expected {expected}"
        elif trained in table and precision not in (variants.BF16, trained):
            yield f"variants[{index}]: expected '{weights}-{trained}', in which the arm is trained, found '{name}'"


def _missing_references(config: dict) -> Iterator[str]:
    """Variants that others are compared with and that are not there."""
    names, table = config["variants"], config["quantizations"]
    if variants.BASELINE not in names:
        yield f"variants: '{variants.BASELINE}' is missing; every other one is compared with it"
    if not any(map(variants.is_quantized, names)):
        yield f"variants: expected one that is quantized, such as '{variants.BASE}-{next(iter(table))}', found none"
    for precision in quantizations.needed(names, config["finetune"]["arms"]):
        rounded = quantizations.rounded(table, precision, names)
        if rounded is None:
            expected = f"another quantization with the same scheme, the same ignore and method {quantizations.ROUNDED}"
            yield f"quantizations: expected {expected}, against which '{precision}' is measured, found none"
        elif f"{variants.BASE}-{rounded}" not in names:
            missing = f"'{variants.BASE}-{rounded}' is missing"
            yield f"variants: {missing}; what is trained or stored in {precision} is measured against it"


def _misfits(config: dict) -> list[str]:
    """What the settings of an arm, taken together, make impossible or idle; what holds for all arms is one line."""
    arms = config["finetune"]["arms"]
    found = [(arm, problem) for arm in arms for problem in _misfits_of(config, arm)]
    everywhere = [problem for problem, count in Counter(problem for _, problem in found).items() if count > 1]
    everywhere = [problem for problem in everywhere if all((arm, problem) in found for arm in arms)]
    return [f"finetune.{problem}" for problem in everywhere] + [
        f"finetune.arms.{arm}.{problem}" for arm, problem in found if problem not in everywhere
    ]


def _misfits_of(config: dict, arm: str) -> list[str]:
    recipe = recipes.recipe_of(config, arm)
    problems = [*limits.unsloth_misfits(recipe, config["device"]), *limits.impossible(recipe)]
    if not recipe["quantization"]:
        idle = [key for key in OF_QAT if key in config["finetune"]["arms"][arm]]
        problems += [f"{key}: has no effect in an arm whose quantization is null" for key in idle]
    return problems


def _idle_words(config: dict) -> Iterator[str]:
    """Words that nothing would heed."""
    names = [variants.BASE, *config["finetune"]["arms"]]
    for name in config["plots"]["colours"]:
        if name not in names:
            yield f"plots.colours.{name}: expected one of {', '.join(names)}"
    latency = config["evaluation"]["latency"]
    if latency["engine"] != "vllm" and latency["vllm_arguments"]:
        yield f"evaluation.latency.vllm_arguments: expected none with engine {latency['engine']}"


def _served_in_float32(config: dict) -> Iterator[str]:
    """vLLM's int4 kernels compute in half precision."""
    for name in ("latency", "serving"):
        settings = config["evaluation"][name]
        if settings and settings.get("engine", "vllm") == "vllm" and settings["dtype"] == "float32":
            yield f"evaluation.{name}.dtype: expected bfloat16, in which vLLM computes with int4, found float32"


def _split_layers(config: dict) -> list[str]:
    ignored = {name: set(entry.get("ignore", [])) for name, entry in config["quantizations"].items()}
    return [
        f"quantizations.{name}.ignore: expected all of {', '.join(sorted(layers))} or none, since vLLM makes one layer "
        f"of them, found {', '.join(sorted(ignore & layers))}"
        for name, ignore in ignored.items()
        for layers in model_facts.FUSED
        if ignore & layers and not layers <= ignore
    ]


def _too_few_examples(config: dict) -> list[str]:
    """More shots than the data have examples, if those were downloaded; else download_mmlu says so."""
    source, asked = config["data"]["source"], config["evaluation"]["mmlu"]
    examples = _known_of(source, DATA_REPORT).get("fewest_examples")
    shots = asked["num_fewshot"] if asked else 0
    if not examples or examples["count"] >= shots:
        return []
    found = f"dev of {source} has {examples['count']} of '{examples['subject']}'"
    return [f"evaluation.mmlu.num_fewshot: expected at most {examples['count']}, since {found}, found {shots}"]


def _misfits_of_models(config: dict) -> list[str]:
    """What does not fit the models that were brought already; of others download_model says so."""
    lines = []
    for name, model in config["models"].items():
        facts = _known_of(model["source"], MODELS / f"{name}.json")
        if facts.keys() >= model_facts.KEYS:
            lines += model_facts.misfits(facts, recipes.settings_of(config, name))
    return lines


def _known_of(source: str, report: Path) -> dict:
    """What an earlier run reported of a source; nothing if that was another source, or if it has changed since."""
    try:
        known = json.loads(report.read_text(encoding="utf-8"))
        changed = max(map(os.path.getmtime, sources.local_files(source)), default=0) > report.stat().st_mtime
    except (OSError, ValueError):
        return {}
    return known if known.get("source") == source and not changed else {}


def _old_keys(config: dict) -> Iterator[str]:
    """Keys of earlier versions, each with the one that took its place."""
    if "quantization" in config:
        yield "quantization: expected `quantizations`, a table of named ones, in which `ignore` is the former skip"
    table = config.get("quantizations")
    for name, entry in table.items() if isinstance(table, dict) else ():
        if isinstance(entry, dict) and "skip" in entry:
            yield f"quantizations.{name}.skip: expected `ignore`, which takes the same names"
    thresholds = publish.get("thresholds") if isinstance(publish := config.get("publish"), dict) else None
    if isinstance(thresholds, dict) and "accuracy_lost_at_most" in thresholds:
        yield "publish.thresholds.accuracy_lost_at_most: expected `lost_at_most`, which is of `evaluation.headline`"
    finetune = config.get("finetune")
    arms = finetune.get("arms") if isinstance(finetune, dict) else None
    named = {f"finetune.arms.{arm}": changes for arm, changes in arms.items()} if isinstance(arms, dict) else {}
    for place, settings in {"finetune": finetune, **named}.items():
        for key, expected in OLD_SETTINGS.items():
            if isinstance(settings, dict) and key in settings:
                yield f"{place}.{key}: expected {expected}"


def _idle_threshold(config: dict) -> Iterator[str]:
    """A loss that no share of questions can exceed."""
    evaluation, most = config["evaluation"], config["publish"]["thresholds"]["lost_at_most"]
    headline = metric_names.headline(evaluation)
    if most >= 1 and headline in metric_names.shares(evaluation):
        yield f"publish.thresholds.lost_at_most: expected less than 1 of {headline}, which is a share, found {most}"


def _unpublishable(config: dict) -> list[str]:
    name = config["publish"]["variant"]
    shipped = [variant for variant in config["variants"] if variants.is_quantized(variant)]
    lines = [] if name in shipped else [f"publish.variant: '{name}' is not one of the quantized variants {shipped}"]
    repositories = [recipes.repository_of(config, model) for model in config["models"]]
    lines += [
        f"publish.repository: expected <owner>/<name>, in which {{model}} alone is filled in, found '{repository}'"
        for repository in repositories[:1]
        if repository and {"{", "}"} & set(repository)
    ]
    if None not in repositories and len(set(repositories)) < len(repositories):
        lines.append(f"publish.repository: '{repositories[0]}' is that of several models; '{{model}}' tells them apart")
    return lines
