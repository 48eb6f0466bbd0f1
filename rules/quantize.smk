# Write quantized checkpoints, one folder for each format, each with a manifest of every layer.
#   in:  results/<model>/<weights>-bf16/checkpoint/, or results/<model>/<weights>-<quantization>/calibrated/
#   out: results/<model>/<weights>-<quantization>/checkpoint/, compressed-tensors/


rule quantize:
    input:
        code=quantize_code,
        checkpoint=quantize_input,
    output:
        directory("results/{model}/{variant}/{folder}"),
    log:
        "logs/{model}/quantize_{variant}_{folder}.log",
    benchmark:
        "benchmarks/quantize/{model}_{variant}_{folder}.tsv"
    wildcard_constraints:
        variant="|".join(quantized),
    conda:
        "../envs/quantize.yaml"
    params:
        scheme=lambda wildcards: json.dumps(quantizations.training_words(quantization(wildcards))["scheme"]),
        ignore=lambda wildcards: quantizations.training_words(quantization(wildcards))["ignore"],
        method=lambda wildcards: quantization(wildcards)["method"],
        format=lambda wildcards: formats[wildcards.variant][wildcards.folder],
    message:
        "quantize: {wildcards.model} {wildcards.variant}"
    shell:
        "python {input.code[0]:q}"
        " --checkpoint {input.checkpoint:q}"
        " --scheme {params.scheme:q}"
        " --ignore {params.ignore:q}"
        " --method {params.method:q}"
        " --format {params.format:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
