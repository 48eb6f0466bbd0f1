# Whether the config fits the model, and the results fit the disk: ahead of all training.
#   in:  resources/models/<model>/
#   out: results/<model>/model.json


localrules:
    check_model,


rule check_model:
    input:
        code=code_of("check_model"),
        model=rules.download_model.output[0],
    output:
        "results/{model}/model.json",
    log:
        "logs/{model}/check_model.log",
    benchmark:
        "benchmarks/check_model/{model}.tsv"
    conda:
        "../envs/quantize.yaml"
    params:
        group_size=config["quantization"]["group_size"],
        skip=config["quantization"]["skip"],
        variants=config["variants"],
        arms=json.dumps({arm: recipes.recipe_of(config, arm) for arm in arms}, sort_keys=True),
        charts=["--charts"] if charted else [],
        device=config["device"],
        results=lambda wildcards, output: os.path.dirname(output[0]),
    message:
        "check_model: {wildcards.model}"
    shell:
        "python {input.code[0]:q}"
        " --model {input.model:q}"
        " --results {params.results:q}"
        " --group-size {params.group_size}"
        " --skip {params.skip:q}"
        " --variants {params.variants:q}"
        " --arms {params.arms:q}"
        " {params.charts:q}"
        " --device {params.device}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
