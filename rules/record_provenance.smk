# Record where each result comes from. Nothing depends on this file, since it holds dates and the commit.
#   in:  all other results of a model, and Snakemake's own records of how they were made
#   out: results/<model>/provenance.json


rule record_provenance:
    input:
        code=code_of("record_provenance"),
        targets=[
            *rules.summarize.output,
            *rules.plot_results.output,
            *rules.model_card.output,
        ],
        results=result_files(measured),
        exports=exports,
    output:
        "results/{model}/provenance.json",
    log:
        "logs/{model}/record_provenance.log",
    benchmark:
        "benchmarks/record_provenance/{model}.tsv"
    conda:
        "../envs/data.yaml"
    params:
        settings=settings,
        results=lambda wildcards, output: os.path.dirname(output[0]),
    message:
        "record_provenance: {wildcards.model}"
    shell:
        "python {input.code[0]:q}"
        " --targets {input.targets:q} {input.results:q} {input.exports:q}"
        " --results {params.results:q}"
        " --settings {params.settings:q}"
        " --records .snakemake/metadata"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
