# Plot the results, each plot as SVG and PNG.
#   in:  results/<model>/summary.json, <variant>/<samples of the headline>, <arm>/training.csv
#   out: results/<model>/plots/

# The titles of the plots in the report.
OF_TEXTS = {"divergence": "divergence from base-bf16"}
OF_SUBJECTS = {
    "recovery_by_group": "recovered, by subject group",
    "recovery_by_subject": "accuracy, by subject",
}
PLOTS = {
    **(OF_TEXTS if texts else {}),
    "headline": f"{headline}, and what was recovered",
    **(OF_SUBJECTS if headline in metric_names.question_sets(config["evaluation"]) else {}),
    "training_loss": "training loss",
    "memory": "peak memory",
    "latency": "latency",
}


rule plot_results:
    input:
        code=code_of("plot_results"),
        summary=rules.summarize.output.json,
        samples=result_files({name: [one for one in found if one.name == headline] for name, found in measured.items()}),
        losses=expand(rules.finetune.output.table, arm=arms, allow_missing=True),
    output:
        [
            report(
                f"results/{{model}}/plots/{plot}.svg",
                category="2 Plots",
                caption=f"captions/{plot}.rst",
                labels={"model": "{model}", "plot": title},
            )
            for plot, title in PLOTS.items()
        ],
        expand("results/{{model}}/plots/{plot}.png", plot=PLOTS),
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
    message:
        "plot_results: {wildcards.model}"
    shell:
        "python {input.code[0]:q}"
        " --summary {input.summary:q}"
        " --results {params.results:q}"
        " --arms {params.arms:q}"
        " --colours {params.colours:q}"
        " --output {params.plots:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
