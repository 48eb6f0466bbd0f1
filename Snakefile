from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")

# common.smk lays the given config over this file. `configfile:` would merge the two and run the models of both.
workflow.configfiles.append(f"{workflow.basedir}/config.yaml")


report: "rules/captions/workflow.rst"


include: "rules/common.smk"
include: "rules/download.smk"
include: "rules/format_mmlu.smk"
include: "rules/finetune.smk"
include: "rules/merge.smk"
include: "rules/check_contamination.smk"
include: "rules/calibrate.smk"
include: "rules/quantize.smk"
include: "rules/check_parity.smk"
include: "rules/evaluate_divergence.smk"
include: "rules/evaluate_mmlu.smk"
include: "rules/evaluate_questions.smk"
include: "rules/check_task.smk"
include: "rules/evaluate_task.smk"
include: "rules/evaluate_chartqa.smk"
include: "rules/measure.smk"
include: "rules/check_serving.smk"
include: "rules/report_costs.smk"
include: "rules/summarize.smk"
include: "rules/plot_results.smk"
include: "rules/model_card.smk"
include: "rules/record_provenance.smk"
include: "rules/render_pages.smk"
include: "rules/publish.smk"


rule all:
    default_target: True
    input:
        expand("results/{model}/summary.json", model=config["models"]),
        expand(rules.plot_results.output, model=config["models"]),
        expand(rules.render_pages.output, model=config["models"]),
        expand(result_files(measured), model=config["models"]),
        expand(exports, model=config["models"]),
    message:
        "all"


onsuccess:
    for model in config["models"]:
        for log in (Path(f"logs/{model}/{name}.log") for name in ("summarize", "report_costs")):
            if log.exists():
                print(log.read_text())


onerror:
    if reasons := [reason for path in log for reason in failures.reasons(Path(path))]:
        print("Failed jobs, each with the last line of its log:", *reasons, sep="\n", file=sys.stderr)
