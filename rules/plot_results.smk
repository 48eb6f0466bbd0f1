# The results as pictures, each as SVG and PNG.
#   in:  results/<model>/summary.json, <variant>/mmlu_samples.parquet, <arm>/training.csv
#   out: results/<model>/plots/


rule plot_results:
    input:
        code=code_of("plot_results"),
        summary=rules.summarize.output.json,
        samples=expand(rules.gather_mmlu.output.samples, variant=config["variants"], allow_missing=True),
        losses=expand(rules.finetune.output.table, arm=arms, allow_missing=True),
    output:
        expand(
            "results/{{model}}/plots/{plot}.{form}",
            plot=["accuracy", "recovery_by_group", "recovery_by_subject", "training_loss", "memory", "latency"],
            form=["svg", "png"],
        ),
    log:
        "logs/{model}/plot_results.log",
    benchmark:
        "benchmarks/plot_results/{model}.tsv"
    conda:
        "../envs/data.yaml"
    params:
        arms=arms,
        colours=json.dumps(config["plots"]["colours"], sort_keys=True),
        results=lambda wildcards, input: os.path.dirname(input.summary),
        plots=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "python {input.code[0]:q}"
        " --summary {input.summary:q}"
        " --results {params.results:q}"
        " --arms {params.arms:q}"
        " --colours {params.colours:q}"
        " --output {params.plots:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
