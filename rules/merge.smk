# Make the bf16 checkpoints: link the base model, and merge each arm's adapter into the model where training began.
#   in:  resources/models/<model>/ or results/<model>/base-<start>/calibrated/, results/<model>/<arm>/adapter/
#   out: results/<model>/<weights>-bf16/checkpoint/


localrules:
    link_base,


rule link_base:
    input:
        code=code_of("link_base"),
        model=rules.download_model.output.folder,
    output:
        directory(f"results/{{model}}/{variants.BASELINE}/checkpoint"),
    log:
        "logs/{model}/link_base.log",
    benchmark:
        "benchmarks/link_base/{model}.tsv"
    conda:
        "../envs/data.yaml"
    message:
        "link_base: {wildcards.model}"
    shell:
        "python {input.code[0]:q}"
        " --model {input.model:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"


rule merge:
    input:
        code=code_of("merge"),
        model=start_folder,
        adapter=rules.finetune.output.adapter,
    output:
        directory("results/{model}/{arm}-bf16/checkpoint"),
    log:
        "logs/{model}/merge_{arm}.log",
    benchmark:
        "benchmarks/merge/{model}_{arm}.tsv"
    conda:
        "../envs/finetune.yaml"
    message:
        "merge: {wildcards.model} {wildcards.arm}"
    shell:
        "python {input.code[0]:q}"
        " --model {input.model:q}"
        " --adapter {input.adapter:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
