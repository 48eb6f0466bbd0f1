# Check whether lm-eval can ask a further task on its data, before any GPU works on it.
#   in:  resources/datasets/<task>/
#   out: resources/tasks/<task>.json; for the metric of the summary resources/metrics/<task>.json


localrules:
    check_metric,


rule check_task:
    input:
        code=code_of("check_task"),
        dataset="resources/datasets/{task}",
    output:
        "resources/tasks/{task}.json",
    log:
        "logs/check_task_{task}.log",
    benchmark:
        "benchmarks/check_task/{task}.tsv"
    priority: 1
    conda:
        "../envs/lm_eval.yaml"
    params:
        num_fewshot=lambda wildcards: tasks[wildcards.task]["num_fewshot"],
    message:
        "check_task: {wildcards.task}"
    shell:
        "python {input.code[0]:q}"
        " --task {wildcards.task:q}"
        " --dataset {input.dataset:q}"
        " --num-fewshot {params.num_fewshot:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"


rule check_metric:
    input:
        code=code_of("check_metric"),
        checked=rules.check_task.output[0],
    output:
        "resources/metrics/{task}.json",
    log:
        "logs/check_metric_{task}.log",
    benchmark:
        "benchmarks/check_metric/{task}.tsv"
    priority: 1
    conda:
        "../envs/data.yaml"
    params:
        metric=lambda wildcards: tasks[wildcards.task]["metric"],
        headline=[f"--headline={headline}"] if headline in tasks else [],
    message:
        "check_metric: {wildcards.task}"
    shell:
        "python {input.code[0]:q}"
        " --checked {input.checked:q}"
        " --metric {params.metric:q}"
        " {params.headline:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
