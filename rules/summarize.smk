# Summarize all variants in one table.
#   in:  results/<model>/<variant>/, files that int4_qat/results/measurements.py lists; resources/metrics/<task>.json
#   out: results/<model>/summary.json, summary.csv


rule summarize:
    input:
        code=code_of("summarize"),
        data=[
            rules.download_mmlu_train.output.report,
            *([rules.download_mmlu.output.report] if mmlu_asked else []),
        ],
        contamination=rules.check_contamination.output[0],
        # This is not an input of calibrate; otherwise another held-out text would re-run calibration, and the training
        # that starts from it.
        texts=rules.check_texts.output if trained_on or calibrated_on else [],
        results=result_files(summarized),
        metrics=expand(rules.check_metric.output, task=tasks),
    output:
        json="results/{model}/summary.json",
        csv="results/{model}/summary.csv",
    log:
        "logs/{model}/summarize.log",
    benchmark:
        "benchmarks/summarize/{model}.tsv"
    conda:
        "../envs/data.yaml"
    params:
        measured=measurements.to_json(summarized),
        headline=headline,
        questions=list(question_sets),
        tasks=[f"{task}={settings['metric']}" for task, settings in tasks.items()],
        arms=json.dumps({arm: recipes.recipe_of(config, arm) for arm in arms}, sort_keys=True),
        references=lambda wildcards: json.dumps(quantizations.references(recipes.settings_of(config, wildcards.model))),
        calibrated=json.dumps(calibrated_bases.bases(config)),
        not_served=json.dumps(measurements.not_served(config)),
        results=lambda wildcards, output: os.path.dirname(output.json),
    message:
        "summarize: {wildcards.model}"
    shell:
        "python {input.code[0]:q}"
        " --model {wildcards.model:q}"
        " --measured {params.measured:q}"
        " --headline {params.headline:q}"
        " --questions {params.questions:q}"
        " --tasks {params.tasks:q}"
        " --arms {params.arms:q}"
        " --references {params.references:q}"
        " --calibrated {params.calibrated:q}"
        " --not-served {params.not_served:q}"
        " --results {params.results:q}"
        " --data-reports {input.data:q}"
        " --contamination {input.contamination:q}"
        " --json {output.json:q}"
        " --csv {output.csv:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
