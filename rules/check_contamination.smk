# Test questions that stand in the training texts.
#   in:  resources/mmlu/{auxiliary_train,test}.parquet
#   out: resources/contamination.json


rule check_contamination:
    input:
        code=code_of("check_contamination"),
        train=f"resources/mmlu/{mmlu.TRAIN_SPLIT}.parquet",
        test="resources/mmlu/test.parquet",
    output:
        "resources/contamination.json",
    log:
        "logs/check_contamination.log",
    benchmark:
        "benchmarks/check_contamination/mmlu.tsv"
    conda:
        "../envs/data.yaml"
    message:
        "check_contamination"
    shell:
        "python {input.code[0]:q}"
        " --train {input.train:q}"
        " --test {input.test:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
