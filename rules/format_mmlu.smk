# Write the training texts in the chat template of the model's own tokenizer.
#   in:  resources/mmlu_train/auxiliary_train.parquet, resources/models/<model>/
#   out: results/<model>/train.parquet (text, subject)


rule format_mmlu:
    input:
        code=code_of("format_mmlu"),
        mmlu=rules.download_mmlu_train.output.questions,
        model=rules.download_model.output.folder,
    output:
        "results/{model}/train.parquet",
    log:
        "logs/{model}/format_mmlu.log",
    benchmark:
        "benchmarks/format_mmlu/{model}.tsv"
    conda:
        "../envs/data.yaml"
    message:
        "format_mmlu: {wildcards.model}"
    shell:
        "python {input.code[0]:q}"
        " --mmlu {input.mmlu:q}"
        " --tokenizer {input.model:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
