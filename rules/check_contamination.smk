# Test questions that stand in the training texts: MMLU's and one's own.
#   in:  resources/mmlu/{auxiliary_train,test}.parquet, resources/questions/<questions>/
#   out: resources/contamination.json


rule check_contamination:
    input:
        code=code_of("check_contamination"),
        train=f"resources/mmlu/{mmlu.TRAIN_SPLIT}.parquet",
        mmlu=["resources/mmlu/test.parquet"] if mmlu_asked else [],
        questions=expand("resources/questions/{questions}", questions=question_sets),
    output:
        "resources/contamination.json",
    log:
        "logs/check_contamination.log",
    benchmark:
        "benchmarks/check_contamination/mmlu.tsv"
    conda:
        "../envs/data.yaml"
    params:
        mmlu=lambda wildcards, input: [f"mmlu={path}" for path in input.mmlu],
        questions=lambda wildcards, input: [
            f"{name}={path}/test.parquet" for name, path in zip(question_sets, input.questions)
        ],
    message:
        "check_contamination"
    shell:
        "python {input.code[0]:q}"
        " --train {input.train:q}"
        " --test {params.mmlu:q} {params.questions:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
