import json
import sys

# What several rules need: the checked config, and where things come from.

sys.path.insert(0, f"{workflow.basedir}/scripts")

from int4_qat import mmlu, recipes, sources, variants, workflow_config

workflow_config.check(config, workflow.basedir, workflow.configfiles)

# Compute nodes often have no network: only what runs `online` may touch the Hub, if its user does not forbid it.
# SIGTERM comes ahead of preemption: bash and the log wait for the program, which has its last words to save.
shell.prefix(
    "set -euo pipefail; trap : TERM; of_user=${{HF_HUB_OFFLINE:-}}; "
    "export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false; "
    'online() {{ HF_HUB_OFFLINE=$of_user "$@"; }}; '
    "show() {{ (trap '' TERM; exec tee \"$1\"); }}; "
)

served = [name for name in config["variants"] if config["evaluation"]["serving"] and variants.split(name)[1] == "int4"]
shards = range(config["evaluation"]["mmlu"]["shards"])
tasks = {settings["task"]: dict(sorted(settings.items())) for settings in config["evaluation"]["tasks"]}
data_sources = {task: settings["source"] for task, settings in tasks.items()}
charted = recipes.charted(config)
if charted:
    data_sources["chartqa"] = config["evaluation"]["chartqa"]["source"]
arms = recipes.arms_of(config)
arms_in_int4 = [name for name in variants.weights_of(config["variants"], "int4") if name != variants.BASE]


wildcard_constraints:
    model="|".join(config["models"]),
    arm="|".join(config["finetune"]["arms"]) or "none",
    variant="|".join(config["variants"]),
    weights="|".join([variants.BASE, *config["finetune"]["arms"]]),
    shard=r"\d+",
    task="|".join(tasks) or "none",
    dataset="|".join(data_sources) or "none",


def code_of(script):
    """A script and every module of ours that it imports: editing one re-runs what depends on it, unless it only refuses."""
    return sources.local_modules(f"{workflow.basedir}/scripts/{script}.py", left_out=sources.REFUSING)


def finetune_code(wildcards):
    """The program of an arm's backend, with its modules."""
    return code_of(recipes.PROGRAMS[recipes.recipe_of(config, wildcards.arm)["backend"]])


def recipe(wildcards):
    """The fine-tuning settings of one arm as JSON."""
    return json.dumps(recipes.recipe_of(config, wildcards.arm), sort_keys=True)


def settings(wildcards):
    """What the results of one model come from, as JSON."""
    return json.dumps(recipes.settings_of(config, wildcards.model), sort_keys=True)


def evaluation(task):
    """The settings of one evaluation, sorted: another order of the keys is no change."""
    return dict(sorted(config["evaluation"][task].items()))


def without(settings, *keys):
    """Settings but for some keys, whose change runs nothing again here."""
    return {key: value for key, value in settings.items() if key not in keys}


def limit_flag(settings):
    """The command-line words for `limit`, none for null."""
    return [f"--limit={settings['limit']}"] if settings["limit"] is not None else []


def gpu_stages(wildcards):
    """The rules that hold a GPU."""
    held = [rule.name for rule in workflow.rules if "gpu" in rule.resources]
    return sorted(held) if config["device"] == "cuda" else []


def source_path(source, standin):
    """The source itself, or where the stand-in is made."""
    return standin if source == workflow_config.STANDIN else source


def source_input(source, standin):
    """The stand-in, or a local folder's files: their content counts."""
    return standin if source == workflow_config.STANDIN else sources.local_files(source)
