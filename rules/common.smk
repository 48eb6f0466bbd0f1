import json
import sys

# What several rules need: the checked config, and where things come from.

sys.path.insert(0, f"{workflow.basedir}/scripts")

from int4_qat import mmlu, sources, variants, workflow_config

workflow_config.check(config, f"{workflow.basedir}/rules/config.schema.yaml")

# Compute nodes often have no network: only the download rules, which unset this, may touch the Hub.
shell.prefix("set -euo pipefail; export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false; ")


wildcard_constraints:
    model="|".join(config["models"]),
    arm="|".join(config["finetune"]["arms"]) or "none",
    variant="|".join(config["variants"]),
    weights="|".join([variants.BASE, *config["finetune"]["arms"]]),


def code_of(script):
    """A script and every module of ours that it imports: editing one re-runs what depends on it."""
    return sources.local_modules(f"{workflow.basedir}/scripts/{script}.py")


def recipe(wildcards):
    """The fine-tuning settings of one arm as JSON."""
    shared = {key: value for key, value in config["finetune"].items() if key != "arms"}
    return json.dumps(shared | config["finetune"]["arms"][wildcards.arm], sort_keys=True)


def evaluation(task):
    """The settings of one evaluation, sorted: another order of the keys is no change."""
    return dict(sorted(config["evaluation"][task].items()))


def device(wildcards, resources):
    """The profile says which rules have a GPU."""
    return "cuda" if resources.gpu else "cpu"


def source_path(source, standin):
    """The source itself, or where the stand-in is made."""
    return standin if source == workflow_config.STANDIN else source


def source_input(source, standin):
    """The stand-in, or a local folder's files: their content counts."""
    return standin if source == workflow_config.STANDIN else sources.local_files(source)
