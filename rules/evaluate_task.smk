# Run a task or group of lm-eval that the config lists by name in evaluation.tasks.
#   in:  results/<model>/<variant>/checkpoint/, resources/datasets/<task>/,
#        resources/tasks/<task>.json
#   out: results/<model>/<variant>/tasks/<task>.json, <task>_samples.parquet


rule evaluate_task:
    input:
        code=code_of("evaluate_task"),
        checkpoint="results/{model}/{variant}/checkpoint",
        dataset="resources/datasets/{task}",
        checked=rules.check_task.output[0],
    output:
        report="results/{model}/{variant}/tasks/{task}.json",
        samples="results/{model}/{variant}/tasks/{task}_samples.parquet",
    log:
        "logs/{model}/evaluate_task_{variant}_{task}.log",
    benchmark:
        "benchmarks/evaluate_task/{model}_{variant}_{task}.tsv"
    conda:
        "../envs/lm_eval.yaml"
    resources:
        gpu=1,
    params:
        settings=lambda wildcards: without(tasks[wildcards.task], "source", "metric"),
        limit=lambda wildcards: limit_flag(tasks[wildcards.task]),
        device=config["device"],
    message:
        "evaluate_task: {wildcards.model} {wildcards.variant}, {wildcards.task}"
    shell:
        "python {input.code[0]:q}"
        " --checkpoint {input.checkpoint:q}"
        " --task {wildcards.task:q}"
        " --dataset {input.dataset:q}"
        " --engine {params.settings[engine]:q}"
        " --num-fewshot {params.settings[num_fewshot]:q}"
        " {params.limit:q}"
        " --batch-size {params.settings[batch_size]:q}"
        " --dtype {params.settings[dtype]:q}"
        " --device {params.device:q}"
        " --gpus {resources.gpu}"
        " --output {output.report:q}"
        " --samples {output.samples:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
