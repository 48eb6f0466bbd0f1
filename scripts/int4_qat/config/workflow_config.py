"""Load the config of a run and check it before anything runs: each mistake is one line that names the key."""

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
    given_sources,
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
from int4_qat.system import sources

OF_QAT = ("qat_target", "grid_learning_rate", "eval_steps")  # settings of arms that are trained in a quantization
# Settings of a training in earlier versions, and what replaced them.
OLD_SETTINGS = {
    "qat_scheme": "`quantization` in each arm, which is a name from the table `quantizations` or null",
    "distillation_weight": "`distillation`, which is null or a table with the weight",
    "per_device_train_batch_size": "`train_batch_size`, the rows per step over all GPUs",
}
DATA_REPORTS = (Path("resources/mmlu/report.json"), Path("resources/mmlu_train/report.json"))  # of download_mmlu
MODELS = Path("resources/models")  # written by download_model; <model>.json has the facts of each
# Names that no question set and no task may have; a test compares them with the measurements.
MEASURED = ("divergence", "mmlu", "chartqa", "memory", "latency", "parity", "serving")


def of_run(workflow: str, given: Mapping, overrides: Mapping, configfiles: Iterable[Path | str]) -> dict:
    """Return the checked config of a run; config.yaml in the folder `workflow` is its lowest layer.

    `given` is everything that Snakemake merged, `overrides` the part of it from --config, `configfiles` the files read.
    """
    config = layers.of_run(load_configfile(f"{workflow}/config.yaml"), given, overrides)
    check(config, workflow, configfiles)
    return config


def refuse_gpus(config: dict, counts: dict[str, int], available: int | None) -> None:
    """End the program with a line for each stage that cannot use as many GPUs as `counts` gives it.

    A stage that `counts` does not name has one GPU. available is the number of GPUs of the run, None where a cluster
    assigns them.
    """
    one = list(limits.ONE_GPU)
    if config["evaluation"]["latency"]["engine"] != quantizations.VLLM:
        one.append("measure_latency")
    found = [f"{rule}: expected gpu: 1 or more, found {count}" for rule, count in counts.items() if count < 1]
    found += [f"{rule}: expected gpu: 1, found {counts[rule]}" for rule in one if counts.get(rule, 1) > 1]
    if available is not None:
        more = {rule: count for rule, count in counts.items() if count > available}
        found += [f"{rule}: expected gpu: {available} or less, as in `resources`, found {more[rule]}" for rule in more]
    for name in recipes.arms_of(config):
        problems = limits.unshared(recipes.recipe_of(config, name), max(counts.get("finetune", 1), 1))
        found += [f"finetune.arms.{name}.{line}" for line in problems]
    if found:
        sys.exit("\n".join(f"config error: {line}" for line in found))


def check(config: dict, workflow: str, configfiles: Iterable[Path | str]) -> None:
    """Convert the config's values in place to the form that all rules see.

    End the program with a line for each value that is wrong.
    """
    rules = schema.read(workflow)
    found = (
        [f"the workflow's folder: expected a path without braces, found {workflow!r}"]
        if {"{", "}"} & set(workflow)
        else []
    )
    found += list(dict.fromkeys(line for path in configfiles for line in config_values.hidden_problems(path)))
    found = found or list(config_values.odd_keys(config))
    found = found or list(_old_keys(config))
    if not found:
        config_values.normalise(config, rules)
        found = problems(config, rules)
    if found:
        sys.exit("\n".join(f"config error: {line}" for line in found))


def problems(config: dict, rules: dict) -> list[str]:
    """Return a line for each mistake in the config; the schema comes first, since the other checks rely on it."""
    lines = schema_errors.lines(config, rules) or [
        *given_sources.problems(config),
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


def _taken_names(config: dict) -> Iterator[str]:
    """Yield a line for each task or question set that has the name of something else that is measured."""
    taken = set(MEASURED)
    for table, key in (("tasks", "task"), ("questions", "name")):
        for index, entry in enumerate(config["evaluation"][table]):
            name = entry[key]
            if name in MEASURED:
                yield f"evaluation.{table}[{index}].{key}: expected none of {', '.join(MEASURED)}, found '{name}'"
            elif name in taken:
                yield f"evaluation.{table}[{index}].{key}: expected a name that no other entry has, found '{name}'"
            taken.add(name)


def _untrainable(config: dict) -> Iterator[str]:
    """Yield a line for each arm that trains in a quantization that does not exist or whose method needs texts."""
    table = config["quantizations"]
    trainable = [name for name, entry in table.items() if not quantizations.is_calibrated(entry)]
    for arm, changes in config["finetune"]["arms"].items():
        name = changes["quantization"]
        if name not in (None, *trainable):
            expected = f"null or one of {', '.join(trainable)}"
            reason = ", since one that is calibrated cannot be trained" if name in table else ""
            yield f"finetune.arms.{arm}.quantization: expected {expected}{reason}, found '{name}'"


def _unknown_variants(config: dict) -> Iterator[str]:
    """Yield a line for each variant that nothing produces; arms trained in a quantization are exported in no other."""
    arms, table = config["finetune"]["arms"], config["quantizations"]
    known, precisions = [variants.BASE, *arms], [variants.BF16, *table]
    for index, name in enumerate(config["variants"]):
        weights, _, precision = name.rpartition("-")
        trained = arms.get(weights, {}).get("quantization")
        if weights not in known or precision not in precisions:
            expected = f"<{' or '.join(known)}>-<{' or '.join(precisions)}>"
            yield f"variants[{index}]: expected {expected}, found '{name}'"
        elif trained in table and precision not in (variants.BF16, trained):
            yield f"variants[{index}]: expected '{weights}-{trained}', in which the arm is trained, found '{name}'"


def _missing_references(config: dict) -> Iterator[str]:
    """Yield a line for each missing variant with which others are compared."""
    names, table = config["variants"], config["quantizations"]
    if variants.BASELINE not in names:
        yield f"variants: expected '{variants.BASELINE}', with which all others are compared, found none"
    if not any(map(variants.is_quantized, names)):
        yield f"variants: expected one that is quantized, such as '{variants.BASE}-{next(iter(table))}', found none"
    for precision in quantizations.needed(names, config["finetune"]["arms"]):
        rounded = quantizations.rounded(table, precision, names)
        if rounded is None:
            expected = f"another quantization with the same scheme, the same ignore and method {quantizations.ROUNDED}"
            yield f"quantizations: expected {expected}, against which '{precision}' is measured, found none"
        elif f"{variants.BASE}-{rounded}" not in names:
            missing = f"expected '{variants.BASE}-{rounded}'"
            yield f"variants: {missing}, against which arms and variants in {precision} are measured, found none"


def _misfits(config: dict) -> list[str]:
    """Return a line for each impossible or idle setting of an arm; a problem that all arms share is a single line."""
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
        problems += [f"{key}: has no effect in an arm whose quantization is null; remove it" for key in idle]
    return problems


def _idle_words(config: dict) -> Iterator[str]:
    """Yield a line for each setting that would have no effect."""
    names = [variants.BASE, *config["finetune"]["arms"]]
    for name in config["plots"]["colours"]:
        if name not in names:
            yield f"plots.colours.{name}: expected one of {', '.join(names)}, found '{name}'"
    latency = config["evaluation"]["latency"]
    if latency["engine"] != quantizations.VLLM and latency["vllm_arguments"]:
        yield f"evaluation.latency.vllm_arguments: expected none with engine {latency['engine']}, found some"


def _served_in_float32(config: dict) -> Iterator[str]:
    """Yield a line for each float32 setting of vLLM, whose int4 kernels compute in half precision."""
    for name in ("latency", "serving"):
        settings = config["evaluation"][name]
        engine = settings and settings.get("engine", quantizations.VLLM)
        if engine == quantizations.VLLM and settings["dtype"] == "float32":
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
    """Return a line if there are more shots than examples in the data; download_mmlu checks data not downloaded yet."""
    source, asked = config["data"]["source"], config["evaluation"]["mmlu"]
    known = [_known_of(source, path).get("fewest_examples") for path in DATA_REPORTS]
    examples = next(filter(None, known), None)
    shots = asked["num_fewshot"] if asked else 0
    if not examples or examples["count"] >= shots:
        return []
    found = f"dev of {source} has no more examples of '{examples['subject']}'"
    return [f"evaluation.mmlu.num_fewshot: expected at most {examples['count']}, since {found}, found {shots}"]


def _misfits_of_models(config: dict) -> list[str]:
    """Return a line for each setting that does not fit a model already downloaded; download_model checks the others."""
    lines = []
    for name, model in config["models"].items():
        facts = _known_of(model["source"], MODELS / f"{name}.json")
        if facts.keys() >= model_facts.KEYS:
            lines += model_facts.misfits(facts, recipes.settings_of(config, name))
    return lines


def _known_of(source: str, report: Path) -> dict:
    """Return what an earlier run reported of a source; nothing if the source is another or has changed since."""
    try:
        known = json.loads(report.read_text(encoding="utf-8"))
        changed = max(map(os.path.getmtime, sources.local_files(source)), default=0) > report.stat().st_mtime
    except (OSError, ValueError):
        return {}
    return known if known.get("source") == source and not changed else {}


def _old_keys(config: dict) -> Iterator[str]:
    """Yield a line for each key of an earlier version, with the one that replaced it."""
    if "quantization" in config:
        yield "quantization: expected `quantizations`, a table of named quantizations, whose `ignore` replaces `skip`"
    table = config.get("quantizations")
    for name, entry in table.items() if isinstance(table, dict) else ():
        if isinstance(entry, dict) and "skip" in entry:
            yield f"quantizations.{name}.skip: expected `ignore`, which takes the same names"
    thresholds = publish.get("thresholds") if isinstance(publish := config.get("publish"), dict) else None
    if isinstance(thresholds, dict) and "accuracy_lost_at_most" in thresholds:
        yield "publish.thresholds.accuracy_lost_at_most: expected `lost_at_most`, the loss of `evaluation.headline`"
    finetune = config.get("finetune")
    arms = finetune.get("arms") if isinstance(finetune, dict) else None
    named = {f"finetune.arms.{arm}": changes for arm, changes in arms.items()} if isinstance(arms, dict) else {}
    for place, settings in {"finetune": finetune, **named}.items():
        for key, expected in OLD_SETTINGS.items():
            if isinstance(settings, dict) and key in settings:
                yield f"{place}.{key}: expected {expected}"


def _idle_threshold(config: dict) -> Iterator[str]:
    """Yield a line if the threshold is a loss that no share can exceed."""
    evaluation, most = config["evaluation"], config["publish"]["thresholds"]["lost_at_most"]
    headline = metric_names.headline(evaluation)
    if most >= 1 and headline in metric_names.shares(evaluation):
        yield f"publish.thresholds.lost_at_most: expected less than 1, since {headline} is a share, found {most}"


def _unpublishable(config: dict) -> list[str]:
    name = config["publish"]["variant"]
    shipped = [variant for variant in config["variants"] if variants.is_quantized(variant)]
    lines = [] if name in shipped else [f"publish.variant: expected one of {', '.join(shipped)}, found '{name}'"]
    repositories = [recipes.repository_of(config, model) for model in config["models"]]
    lines += [
        f"publish.repository: expected <owner>/<name>, in which only {{model}} is replaced, found '{repository}'"
        for repository in repositories[:1]
        if repository and {"{", "}"} & set(repository)
    ]
    if None not in repositories and len(set(repositories)) < len(repositories):
        lines.append(f"publish.repository: expected '{{model}}' in it, for several models, found '{repositories[0]}'")
    return lines
