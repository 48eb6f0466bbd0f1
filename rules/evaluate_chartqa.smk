# Run lmms-eval's chartqa, to measure what int4 costs a model that sees charts.
#   in:  results/<model>/<variant>/checkpoint/, resources/datasets/chartqa/
#   out: results/<model>/<variant>/chartqa.json, chartqa_samples.parquet; lmms-eval's log, JSON and answers in lmms/


rule evaluate_chartqa:
    input:
        code=code_of("evaluate_chartqa"),
        checkpoint="results/{model}/{variant}/checkpoint",
        dataset="resources/datasets/chartqa",
    output:
        report="results/{model}/{variant}/chartqa.json",
        samples="results/{model}/{variant}/chartqa_samples.parquet",
    log:
        "logs/{model}/evaluate_chartqa_{variant}.log",
    benchmark:
        "benchmarks/evaluate_chartqa/{model}_{variant}.tsv"
    conda:
        "../envs/lmms_eval.yaml"
    resources:
        gpu=1,
        # This is not a param, since changing it must not run anything again.
        time_limit=lambda wildcards: config["evaluation"]["chartqa"]["time_limit"],
    params:
        settings=lambda wildcards: without(evaluation("chartqa"), "source", "time_limit"),
        limit=lambda wildcards: limit_flag(evaluation("chartqa")),
        # This is not an output, since Snakemake deletes the outputs of a job that fails.
        lmms_runs="results/{model}/{variant}/lmms",
        device=config["device"],
    message:
        "evaluate_chartqa: {wildcards.model} {wildcards.variant}"
    shell:
        "python {input.code[0]:q}"
        " --checkpoint {input.checkpoint:q}"
        " --model {params.settings[model]:q}"
        " --dataset {input.dataset:q}"
        " {params.limit:q}"
        " --batch-size {params.settings[batch_size]:q}"
        " --device {params.device:q}"
        " --lmms-runs {params.lmms_runs:q}"
        " --time-limit {resources.time_limit}"
        " --output {output.report:q}"
        " --samples {output.samples:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
