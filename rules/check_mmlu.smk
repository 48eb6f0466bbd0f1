# Whether lm-eval can score the data with the shots that the config names: ahead of all training.
#   in:  resources/mmlu/{dev,validation,test}.parquet
#   out: resources/mmlu_questions.json


localrules:
    check_mmlu,


rule check_mmlu:
    input:
        code=code_of("check_mmlu"),
        mmlu=expand("resources/mmlu/{split}.parquet", split=mmlu.EVALUATION_SPLITS),
    output:
        "resources/mmlu_questions.json",
    log:
        "logs/check_mmlu.log",
    benchmark:
        "benchmarks/check_mmlu/mmlu.tsv"
    conda:
        "../envs/data.yaml"
    params:
        num_fewshot=evaluation("mmlu")["num_fewshot"],
    message:
        "check_mmlu"
    shell:
        "python {input.code[0]:q}"
        " --mmlu resources/mmlu"
        " --num-fewshot {params.num_fewshot}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
