# Write the model card of the quantized variant that `publish` names.
#   in:  results/<model>/summary.json, the JSON files of its variants
#   out: results/<model>/model_card.md


localrules:
    model_card,


rule model_card:
    input:
        code=code_of("model_card"),
        template=f"{workflow.basedir}/scripts/templates/model_card.md.jinja",
        summary=rules.summarize.output.json,
        costs=rules.report_costs.output.json,
        folders=[
            f"results/{{model}}/{config['publish']['variant']}/{name}"
            for name in formats[config["publish"]["variant"]]
        ],
        results=result_files(summarized | {config["publish"]["variant"]: measured[config["publish"]["variant"]]}),
    output:
        "results/{model}/model_card.md",
    log:
        "logs/{model}/model_card.log",
    benchmark:
        "benchmarks/model_card/{model}.tsv"
    conda:
        "../envs/data.yaml"
    params:
        settings=settings,
        results=lambda wildcards, input: os.path.dirname(input.summary),
    message:
        "model_card: {wildcards.model}"
    shell:
        "python {input.code[0]:q}"
        " --results {params.results:q}"
        " --settings {params.settings:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
