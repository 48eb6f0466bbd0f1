# Report the costs of each stage, from the benchmark record of each job.
#   in:  benchmarks/<rule>/*.tsv
#   out: results/<model>/costs.json, costs.csv


localrules:
    report_costs,


rule report_costs:
    input:
        code=code_of("report_costs"),
        shared=[
            rules.download_mmlu_train.benchmark,
            *([rules.download_mmlu.benchmark] if mmlu_asked else []),
            *expand(rules.download_dataset.benchmark, dataset=data_sources),
            *expand(rules.download_questions.benchmark, questions=question_sets),
            *expand(rules.download_text.benchmark, text_file=brought_texts),
            rules.check_contamination.benchmark,
            *([rules.check_texts.benchmark] if trained_on or calibrated_on else []),
            *expand(rules.check_task.benchmark, task=tasks),
        ],
        model=[
            rules.download_model.benchmark,
            rules.format_mmlu.benchmark,
        ],
        arms=expand(
            [rules.finetune.benchmark, rules.merge.benchmark],
            arm=arms,
            allow_missing=True,
        ),
        calibrate=expand(rules.calibrate.benchmark, variant=calibrated, allow_missing=True),
        quantize=[
            record
            for variant in quantized
            for folder in formats[variant]
            for record in expand(
                rules.quantize.benchmark,
                variant=variant,
                folder=folder,
                allow_missing=True,
            )
        ],
        states=expand(
            rules.record_hidden_states.benchmark,
            weights=variants.weights_of(config["variants"]) if texts else [],
            allow_missing=True,
        ),
        measured=[
            record
            for variant, found in measured.items()
            for one in found
            if one.in_bf16 is None or variant in quantized  # the records of the others are in `states`
            for record in expand(
                getattr(rules, one.rule).benchmark,
                variant=variant,
                task=one.name,
                questions=one.name,
                allow_missing=True,
            )
        ],
        shards=expand(rules.evaluate_mmlu.benchmark, variant=config["variants"], shard=shards, allow_missing=True),
    output:
        json="results/{model}/costs.json",
        csv="results/{model}/costs.csv",
    log:
        "logs/{model}/report_costs.log",
    benchmark:
        "benchmarks/report_costs/{model}.tsv"
    conda:
        "../envs/data.yaml"
    params:
        records=lambda wildcards, input: [path for path in input if path.endswith(".tsv")],
        gpu_stages=gpu_stages,
    message:
        "report_costs: {wildcards.model}"
    shell:
        "python {input.code[0]:q}"
        " --records {params.records:q}"
        " --gpu-stages {params.gpu_stages:q}"
        " --json {output.json:q}"
        " --csv {output.csv:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
