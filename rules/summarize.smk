# One table of all variants.
#   in:  results/<model>/<variant>/{mmlu,memory,latency}.json, mmlu_samples.parquet, tasks/<task>.json, results/<model>/costs.json
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
        tasks=expand("results/{{model}}/{variant}/tasks/{task}.json", variant=config["variants"], task=tasks),
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
        arms=json.dumps({arm: settings_of(arm) for arm in arms}, sort_keys=True),
        tasks=[f"{task}={settings['metric']}" for task, settings in tasks.items()],
        results=lambda wildcards, output: os.path.dirname(output.json),
    shell:
        "python {input.code[0]:q}"
        " --model {wildcards.model}"
        " --variants {params.variants:q}"
        " --arms {params.arms:q}"
        " --tasks {params.tasks:q}"
        " --results {params.results:q}"
        " --data-report {input.data:q}"
        " --contamination {input.contamination:q}"
        " --costs {input.costs:q}"
        " --json {output.json:q}"
        " --csv {output.csv:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
