# Run lm-eval's mmlu with the same settings for every variant. Its subjects may be spread over several jobs.
#   in:  results/<model>/<variant>/checkpoint/, resources/mmlu/{dev,validation,test}.parquet
#   out: results/<model>/<variant>/mmlu.json, mmlu_samples.parquet


rule evaluate_mmlu:
    input:
        code=code_of("evaluate_mmlu"),
        checkpoint="results/{model}/{variant}/checkpoint",
        mmlu=expand("resources/mmlu/{split}.parquet", split=mmlu.EVALUATION_SPLITS),
    output:
        report="results/{model}/{variant}/mmlu_shards/{shard}.json",
        samples="results/{model}/{variant}/mmlu_shards/{shard}.parquet",
    log:
        "logs/{model}/evaluate_mmlu_{variant}_{shard}.log",
    benchmark:
        "benchmarks/evaluate_mmlu/{model}_{variant}_{shard}.tsv"
    conda:
        "../envs/lm_eval.yaml"
    resources:
        gpu=1,
    params:
        settings=lambda wildcards: evaluation("mmlu"),
        limit=lambda wildcards: limit_flag(evaluation("mmlu")),
        device=config["device"],
    message:
        "evaluate_mmlu: {wildcards.model} {wildcards.variant}, shard {wildcards.shard}"
    shell:
        "python {input.code[0]:q}"
        " --checkpoint {input.checkpoint:q}"
        " --mmlu resources/mmlu"
        " --shard {wildcards.shard:q}"
        " --shards {params.settings[shards]:q}"
        " --engine {params.settings[engine]:q}"
        " --num-fewshot {params.settings[num_fewshot]:q}"
        " {params.limit:q}"
        " --batch-size {params.settings[batch_size]:q}"
        " --dtype {params.settings[dtype]:q}"
        " --device {params.device:q}"
        " --gpus {resources.gpu}"
        " --output {output.report:q}"
        " --samples {output.samples:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"


localrules:
    gather_mmlu,


rule gather_mmlu:
    input:
        code=code_of("gather_mmlu"),
        reports=expand(rules.evaluate_mmlu.output.report, shard=shards, allow_missing=True),
        samples=expand(rules.evaluate_mmlu.output.samples, shard=shards, allow_missing=True),
    output:
        report="results/{model}/{variant}/mmlu.json",
        samples="results/{model}/{variant}/mmlu_samples.parquet",
    log:
        "logs/{model}/gather_mmlu_{variant}.log",
    benchmark:
        "benchmarks/gather_mmlu/{model}_{variant}.tsv"
    conda:
        "../envs/data.yaml"
    message:
        "gather_mmlu: {wildcards.model} {wildcards.variant}"
    shell:
        "python {input.code[0]:q}"
        " --shard-reports {input.reports:q}"
        " --shard-samples {input.samples:q}"
        " --output {output.report:q}"
        " --samples {output.samples:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
