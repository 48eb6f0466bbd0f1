# Checkpoints in int4, with a manifest of every layer.
#   in:  results/<model>/<weights>-bf16/checkpoint/
#   out: results/<model>/<weights>-int4/checkpoint/


rule quantize:
    input:
        code=code_of("quantize"),
        checkpoint="results/{model}/{weights}-bf16/checkpoint",
    output:
        directory("results/{model}/{weights}-int4/checkpoint"),
    log:
        "logs/{model}/quantize_{weights}.log",
    benchmark:
        "benchmarks/quantize/{model}_{weights}.tsv"
    conda:
        "../envs/quantize.yaml"
    params:
        scheme=config["quantization"]["scheme"],
        packing=config["quantization"]["packing"],
        group_size=config["quantization"]["group_size"],
        skip=config["quantization"]["skip"],
    message:
        "quantize: {wildcards.model} {wildcards.weights}"
    shell:
        "python {input.code[0]:q}"
        " --checkpoint {input.checkpoint:q}"
        " --scheme {params.scheme:q}"
        " --packing {params.packing:q}"
        " --group-size {params.group_size:q}"
        " --skip {params.skip:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
