# Check whether the training of each arm saw what is deployed.
#   in:  resources/models/<model>/ or results/<model>/base-<start>/calibrated/, results/<model>/<arm>/adapter/,
#        results/<model>/<variant>/checkpoint/, results/<model>/train.parquet
#   out: results/<model>/<variant>/parity.json


rule check_parity:
    input:
        code=parity_code,
        model=start_folder,
        adapter=lambda wildcards: f"results/{wildcards.model}/{weights_of(wildcards)}/adapter",
        checkpoint="results/{model}/{variant}/checkpoint",
        texts=rules.format_mmlu.output[0],
    output:
        "results/{model}/{variant}/parity.json",
    log:
        "logs/{model}/check_parity_{variant}.log",
    benchmark:
        "benchmarks/check_parity/{model}_{variant}.tsv"
    wildcard_constraints:
        variant="|".join(name for name in quantized if "parity" in {one.name for one in measured[name]}) or "none",
    conda:
        "../envs/finetune.yaml"
    resources:
        gpu=1,
    params:
        device=config["device"],
    message:
        "check_parity: {wildcards.model} {wildcards.variant}"
    shell:
        "python {input.code[0]:q}"
        " --model {input.model:q}"
        " --adapter {input.adapter:q}"
        " --checkpoint {input.checkpoint:q}"
        " --texts {input.texts:q}"
        " --device {params.device:q}"
        " --gpus {resources.gpu}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
