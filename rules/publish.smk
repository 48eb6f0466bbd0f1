# Upload the published checkpoint and its card to the Hub with `snakemake publish`. The default target never does this.
#   in:  results/<model>/provenance.json and all that it lists
#   out: a repository for each format, named as in the config; results/<model>/published.json


localrules:
    publish,
    upload_model,


rule upload_model:
    input:
        code=code_of("upload_model"),
        template=rules.model_card.input.template,
        provenance=rules.record_provenance.output[0],
    output:
        "results/{model}/published.json",
    log:
        "logs/{model}/upload_model.log",
    benchmark:
        "benchmarks/upload_model/{model}.tsv"
    conda:
        "../envs/data.yaml"
    params:
        variant=config["publish"]["variant"],
        thresholds=config["publish"]["thresholds"],
        public=[] if config["publish"]["private"] else ["--public"],
        repository=lambda wildcards: [
            f"--repository={name}" for name in [recipes.repository_of(config, wildcards.model)] if name
        ],
        results=lambda wildcards, output: os.path.dirname(output[0]),
    message:
        "upload_model: {wildcards.model}"
    shell:
        "online python {input.code[0]:q}"
        " --results {params.results:q}"
        " --variant {params.variant:q}"
        " {params.repository:q}"
        " --recovered-at-least={params.thresholds[recovered_at_least]:q}"
        " --lost-at-most={params.thresholds[lost_at_most]:q}"
        " {params.public:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"


rule publish:
    input:
        expand(rules.upload_model.output, model=config["models"]),
