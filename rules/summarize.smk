# One table of all variants.
#   in:  results/<model>/<variant>/{mmlu,memory,latency}.json, mmlu_samples.parquet, tasks/<task>.json, chartqa.json,
#        results/<model>/costs.json, results/<model>/<arm>-int4/parity.json, resources/metrics/<task>.json
#   out: results/<model>/summary.json, summary.csv


rule summarize:
    input:
        code=code_of("summarize"),
        data=rules.download_mmlu.output.report,
        contamination=rules.check_contamination.output[0],
        costs=rules.report_costs.output.json,
        results=expand(
            "results/{{model}}/{variant}/{result}",
            variant=config["variants"],
            result=["mmlu.json", "mmlu_samples.parquet", "memory.json", "latency.json"],
        ),
        parity=expand(rules.check_parity.output, arm=arms_in_int4, allow_missing=True),
        tasks=expand("results/{{model}}/{variant}/tasks/{task}.json", variant=config["variants"], task=tasks),
        metrics=expand(rules.check_metric.output, task=tasks),
        charts=expand("results/{{model}}/{variant}/chartqa.json", variant=charted),
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
        variants=config["variants"],
        arms=json.dumps({arm: recipes.recipe_of(config, arm) for arm in arms}, sort_keys=True),
        tasks=[f"{task}={metric}" for task, metric in recipes.metrics_of(config).items()],
        charted=charted,
        results=lambda wildcards, output: os.path.dirname(output.json),
    message:
        "summarize: {wildcards.model}"
    shell:
        "python {input.code[0]:q}"
        " --model {wildcards.model:q}"
        " --variants {params.variants:q}"
        " --arms {params.arms:q}"
        " --tasks {params.tasks:q}"
        " --charted {params.charted:q}"
        " --results {params.results:q}"
        " --data-report {input.data:q}"
        " --contamination {input.contamination:q}"
        " --costs {input.costs:q}"
        " --json {output.json:q}"
        " --csv {output.csv:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
