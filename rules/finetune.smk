# Train one LoRA adapter per arm. The arms differ in their keys in the config.
#   in:  results/<model>/train.parquet and resources/texts/<text>.txt or .jsonl, as far as the arm names them,
#        resources/models/<model>/ or results/<model>/base-<start>/calibrated/
#   out: results/<model>/<arm>/adapter/, results/<model>/<arm>/training.csv


rule finetune:
    input:
        code=finetune_code,
        texts=finetune_texts,
        model=start_folder,
        base=compared_base,
    output:
        adapter=directory("results/{model}/{arm}/adapter"),
        table="results/{model}/{arm}/training.csv",
    log:
        "logs/{model}/finetune_{arm}.log",
    benchmark:
        "benchmarks/finetune/{model}_{arm}.tsv"
    conda:
        "../envs/finetune.yaml"
    resources:
        gpu=1,
        # These are not params, since changing them must not retrain anything.
        report_to=config["finetune"]["report_to"],
        allow_worse=allow_worse,
    params:
        base=lambda wildcards, input: [f"--base={input.base}"] if input.base else [],
        recipe=recipe,
        texts=lambda wildcards, input: named(named_texts.of_arm(config, wildcards.arm), input.texts),
        # This is not an output, since Snakemake deletes the outputs of a job that fails.
        checkpoints="results/{model}/{arm}/checkpoints",
        device=config["device"],
    message:
        "finetune: {wildcards.model} {wildcards.arm}"
    shell:
        "python {input.code[0]:q}"
        " --model {input.model:q}"
        " {params.base:q}"
        " --texts {params.texts:q}"
        " --recipe {params.recipe:q}"
        " --device {params.device:q}"
        " --checkpoints {params.checkpoints:q}"
        " --adapter {output.adapter:q}"
        " --log-table {output.table:q}"
        " --processes {resources.gpu}"
        " --report-to {resources.report_to:q}"
        " --allow-worse {resources.allow_worse}"
        " 2>&1 | show {log:q}"
