import json
import os
import sys

# Define what several rules need: the checked config, and the paths and code that their jobs depend on.

sys.path.insert(0, f"{workflow.basedir}/scripts")

from int4_qat.config import calibration, metric_names, named_texts, quantizations, recipes, variants, workflow_config
from int4_qat.config.recipe import compares_with_base
from int4_qat.data import mmlu
from int4_qat.results import calibrated_bases, measured_files, measurements
from int4_qat.system import deployment, failures, rooms, sources
from int4_qat.system.errors import InputError

deployment.refuse(workflow.deployment_settings.deployment_method, [workflow.basedir, os.getcwd()])
config = workflow_config.of_run(workflow.basedir, config, workflow.config_settings.config, workflow.configfiles)

# GPUs of each stage for which a profile sets their number, as `set-resources: {finetune: {gpu: 2}}`; others have one.
set_resources = workflow.resource_settings.overwrite_resources
gpus = {rule: resources["gpu"].value for rule, resources in set_resources.items() if "gpu" in resources}
if workflow.is_main_process:
    workflow_config.refuse_gpus(config, gpus, workflow.global_resources.get("gpu").value)

# Compute nodes often have no network, so only commands that run with `online` may access the Hub, unless the user's own
# HF_HUB_OFFLINE forbids it. TORCH_LOGS hides a deprecation in torchao, of which PyTorch warns in every log. With
# GOMP_SPINCOUNT, threads that wait for others soon give up their core: with libgomp's own value, on cores that other
# processes need too, the stand-in trained at less than a tenth of the speed. SIGTERM precedes preemption. bash and the
# log then wait for the program, so that it can save its state and its last output.
shell.prefix(
    "set -euo pipefail; trap : TERM; of_user=${{HF_HUB_OFFLINE:-}}; "
    "export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false TORCH_LOGS=${{TORCH_LOGS:--torch.utils._pytree}}"
    " GOMP_SPINCOUNT=${{GOMP_SPINCOUNT:-1000}}; "
    'online() {{ HF_HUB_OFFLINE=$of_user "$@"; }}; '
    "show() {{ (trap '' TERM; exec tee \"$1\"); }}; "
)

SAID = ("source", "license")  # keys of a text that do not say how its files are read
quantized = [name for name in config["variants"] if variants.is_quantized(name)]
measured = measurements.asked(config)
summarized = measurements.summarized(measured)
mmlu_asked = config["evaluation"]["mmlu"] is not None
shards = range(config["evaluation"]["mmlu"]["shards"] if mmlu_asked else 0)
texts = metric_names.texts(config["evaluation"])
trained_on, calibrated_on = named_texts.used(config).values()
general_texts = named_texts.general(config)
text_files = {name: named_texts.file_name(name, entry) for name, entry in (texts | general_texts).items()}
brought_texts = {text_files[name]: entry for name, entry in (texts | general_texts).items()}
calibrated = [name for name in quantized if calibrated_bases.is_calibrated(name, config)]
question_sets = {settings["name"]: dict(sorted(settings.items())) for settings in config["evaluation"]["questions"]}
tasks = {settings["task"]: dict(sorted(settings.items())) for settings in config["evaluation"]["tasks"]}
with_data = tasks | {name: settings for name, settings in config["evaluation"].items() if isinstance(settings, dict)}
data_sources = {name: settings["source"] for name, settings in with_data.items() if "source" in settings}
headline = metric_names.headline(config["evaluation"])
arms = recipes.arms_of(config)
formats = {name: quantizations.folders(config["quantizations"][variants.split(name)[1]]) for name in quantized}
exports = [f"results/{{model}}/{name}/{folder}" for name in formats for folder in formats[name]]


wildcard_constraints:
    model="|".join(config["models"]),
    arm="|".join(config["finetune"]["arms"]) or "none",
    variant="|".join(config["variants"]),
    folder="|".join(sorted({folder for folders in formats.values() for folder in folders})),
    shard=r"\d+",
    weights="|".join(variants.weights_of(config["variants"])),
    text_file="|".join(brought_texts) or "none",
    questions="|".join(question_sets) or "none",
    task="|".join(tasks) or "none",
    dataset="|".join(data_sources) or "none",


def code_of(script, also=()):
    """Return a script and every local module that it imports, so that editing one re-runs what depends on it.

    `also` are files that the script loads by a word of the config. Modules that only refuse are left out: they
    change no output.
    """
    return sources.local_modules(f"{workflow.basedir}/scripts/{script}.py", also, left_out=sources.REFUSING)


def finetune_code(wildcards):
    """Return the code of the training program, with the file of an arm's backend."""
    backend = recipes.recipe_of(config, wildcards.arm)["backend"]
    return code_of("finetune", [rooms.file_of(rooms.BACKENDS, backend)])


def quantization(wildcards):
    """Return the config's entry for the quantization of a variant."""
    return config["quantizations"][variants.split(wildcards.variant)[1]]


def calibrate_code(wildcards):
    """Return the code of the calibration program, with the file of a variant's method."""
    return code_of("calibrate", [rooms.file_of(rooms.METHODS, quantization(wildcards)["method"])])


def quantize_code(wildcards):
    """Return the code of the quantization program, with the files of a variant's method and of a folder's format."""
    method = rooms.file_of(rooms.METHODS, quantization(wildcards)["method"])
    return code_of("quantize", [method, rooms.file_of(rooms.FORMATS, formats[wildcards.variant][wildcards.folder])])


def parity_code(wildcards):
    """Return the code of the parity check, with the files of a variant's method and of the format that is loaded."""
    method = rooms.file_of(rooms.METHODS, quantization(wildcards)["method"])
    return code_of("check_parity", [method, rooms.file_of(rooms.FORMATS, quantizations.LOADED)])


def result_files(measured):
    """Return the files of the given measurements of variants; the model remains a wildcard."""
    return [f"results/{{model}}/{path}" for path in measured_files.paths(measured)]


def paths_of_texts(names, questions):
    """Return the files of the named texts; `questions` is the file of the training questions."""
    places = {name: f"resources/texts/{file}" for name, file in text_files.items()}
    return [(places | {calibration.QUESTIONS: questions})[name] for name in names]


def calibration_texts(wildcards):
    """Return the files of the texts on which a model is calibrated, in the order of the config."""
    return paths_of_texts(calibration.texts_of(config), f"results/{wildcards.model}/train.parquet")


def finetune_texts(wildcards):
    """Return the files of the texts on which an arm is trained."""
    return paths_of_texts(named_texts.of_arm(config, wildcards.arm), f"results/{wildcards.model}/train.parquet")


def named(names, paths):
    """Return a command-line word, name=path, for each file."""
    return [f"{name}={path}" for name, path in zip(names, paths)]


def bf16_checkpoint(wildcards):
    """Return the bf16 checkpoint of a variant's weights: the trained arm, or the base as it is."""
    return f"results/{wildcards.model}/{weights_of(wildcards)}-{variants.BF16}/checkpoint"


def quantize_input(wildcards):
    """Return the bf16 checkpoint that is quantized: as calibration leaves it, or that of bf16_checkpoint."""
    if wildcards.variant in calibrated:
        return f"results/{wildcards.model}/{wildcards.variant}/calibrated"
    return bf16_checkpoint(wildcards)


def start_folder(wildcards):
    """Return the checkpoint at which the training of an arm, or of a variant's arm, begins."""
    arm = wildcards.get("arm") or weights_of(wildcards)
    if start := recipes.recipe_of(config, arm)["start"]:
        return f"results/{wildcards.model}/{variants.BASE}-{start}/calibrated"
    return f"resources/models/{wildcards.model}"


def compared_base(wildcards):
    """Return the base if the training of an arm starts elsewhere and is compared with it, else nothing.

    Any other training has the base as its start, or does not need it.
    """
    settings = recipes.recipe_of(config, wildcards.arm)
    needed = settings["start"] and compares_with_base(settings)
    return f"resources/models/{wildcards.model}" if needed else []


def served(engine):
    """Return an input function that returns the folder of a variant that an engine serves.

    The function raises InputError with the reason if the engine cannot serve the variant.
    """

    def folder(wildcards):
        name, place = wildcards.variant, "checkpoint"
        if variants.is_quantized(name):
            if reason := quantizations.why_not_served(quantization(wildcards), engine):
                raise InputError(f"{name}: {reason}")
            place = quantizations.served_folder(quantization(wildcards), engine)
        return f"results/{wildcards.model}/{name}/{place}"

    return folder


def weights_of(wildcards):
    """Return the base or the arm of a variant."""
    return variants.split(wildcards.variant)[0]


def of_base(wildcards, name):
    """Return the folder of base-bf16 with the given name, to compare weights with, or nothing for the base itself."""
    return [] if wildcards.weights == variants.BASE else f"results/{wildcards.model}/{variants.BASELINE}/{name}"


def base_flags(input):
    """Return the command-line words that name the base, or none for the base itself."""
    return [f"--base={input.base}", f"--base-states={input.base_states}"] if input.base else []


def recipe(wildcards):
    """Return the settings that the training of an arm depends on, as JSON."""
    return json.dumps(recipes.training_of(recipes.recipe_of(config, wildcards.arm)), sort_keys=True)


def allow_worse(wildcards):
    """Return 1 if the training of an arm may end worse than it began, else 0."""
    return int(recipes.recipe_of(config, wildcards.arm)["allow_worse"])


def settings(wildcards):
    """Return the settings that the results of one model depend on, as JSON."""
    return json.dumps(recipes.settings_of(config, wildcards.model), sort_keys=True)


def evaluation(task):
    """Return the settings of one evaluation, sorted, so that another order of the keys is not a change."""
    return dict(sorted(config["evaluation"][task].items()))


def without(settings, *keys):
    """Return settings without the given keys, whose changes re-run nothing here."""
    return {key: value for key, value in settings.items() if key not in keys}


def limit_flag(settings):
    """Return the command-line words for `limit`, or none for null."""
    return [f"--limit={settings['limit']}"] if settings["limit"] is not None else []


def gpu_stages(wildcards):
    """Return the rules that hold GPUs, each as <rule>=<GPUs of a job>, or none on a CPU."""
    held = sorted(rule.name for rule in workflow.rules if "gpu" in rule.resources)
    return [f"{name}={gpus.get(name, 1)}" for name in held] if config["device"] == "cuda" else []


def source_path(source, standin):
    """Return the source itself, or the folder in which the stand-in is made."""
    return standin if source == recipes.STANDIN else source


def source_input(source, standin):
    """Return the stand-in's folder, or the files of a local source, since a change of their content counts."""
    return standin if source == recipes.STANDIN else sources.local_files(source)
