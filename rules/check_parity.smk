# Whether each arm's training saw what is deployed.
#   in:  resources/models/<model>/, results/<model>/<arm>/adapter/, results/<model>/<arm>-int4/checkpoint/,
#        results/<model>/train.parquet
#   out: results/<model>/<arm>-int4/parity.json


rule check_parity:
    input:
        code=code_of("check_parity"),
        model=rules.download_model.output.folder,
        adapter=rules.finetune.output.adapter,
        checkpoint="results/{model}/{arm}-int4/checkpoint",
        texts=rules.format_mmlu.output[0],
    output:
        "results/{model}/{arm}-int4/parity.json",
    log:
        "logs/{model}/check_parity_{arm}.log",
    benchmark:
        "benchmarks/check_parity/{model}_{arm}.tsv"
    conda:
        "../envs/finetune.yaml"
    resources:
        gpu=1,
    params:
        device=config["device"],
    message:
        "check_parity: {wildcards.model} {wildcards.arm}"
    shell:
        "python {input.code[0]:q}"
        " --model {input.model:q}"
        " --adapter {input.adapter:q}"
        " --checkpoint {input.checkpoint:q}"
        " --texts {input.texts:q}"
        " --device {params.device:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
