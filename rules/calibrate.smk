# Calibrate checkpoints: a method finds weights and grids from texts. The result is rounded, or trained further.
#   in:  results/<model>/<weights>-bf16/checkpoint/, results/<model>/train.parquet, resources/texts/<text>.txt or .jsonl
#   out: results/<model>/<weights>-<quantization>/calibrated/


rule calibrate:
    input:
        code=calibrate_code,
        checkpoint=bf16_checkpoint,
        texts=calibration_texts,
    output:
        directory("results/{model}/{variant}/calibrated"),
    log:
        "logs/{model}/calibrate_{variant}.log",
    benchmark:
        "benchmarks/calibrate/{model}_{variant}.tsv"
    wildcard_constraints:
        variant="|".join(calibrated) or "none",
    conda:
        "../envs/quantize.yaml"
    resources:
        gpu=1,
    params:
        scheme=lambda wildcards: json.dumps(quantizations.training_words(quantization(wildcards))["scheme"]),
        ignore=lambda wildcards: quantizations.training_words(quantization(wildcards))["ignore"],
        method=lambda wildcards: quantization(wildcards)["method"],
        settings=lambda wildcards: dict(sorted(without(config["calibration"], "texts").items())),
        device=config["device"],
    message:
        "calibrate: {wildcards.model} {wildcards.variant}"
    shell:
        "python {input.code[0]:q}"
        " --checkpoint {input.checkpoint:q}"
        " --scheme {params.scheme:q}"
        " --ignore {params.ignore:q}"
        " --method {params.method:q}"
        " --texts {input.texts:q}"
        " --samples {params.settings[samples]:q}"
        " --length {params.settings[length]:q}"
        " --batch-size {params.settings[batch_size]:q}"
        " --seed {params.settings[seed]:q}"
        " --dtype {params.settings[dtype]:q}"
        " --device {params.device:q}"
        " --output {output:q}"
        " 2>&1 | show {log:q}"
