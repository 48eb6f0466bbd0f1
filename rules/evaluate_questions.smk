# Ask and score your own multiple-choice questions in the same way as MMLU, with the same settings for every variant.
#   in:  results/<model>/<variant>/checkpoint/, resources/questions/<questions>/
#   out: results/<model>/<variant>/questions/<questions>.json, <questions>_samples.parquet


rule evaluate_questions:
    input:
        code=code_of("evaluate_questions"),
        checkpoint="results/{model}/{variant}/checkpoint",
        questions="resources/questions/{questions}",
    output:
        report="results/{model}/{variant}/questions/{questions}.json",
        samples="results/{model}/{variant}/questions/{questions}_samples.parquet",
    log:
        "logs/{model}/evaluate_questions_{variant}_{questions}.log",
    benchmark:
        "benchmarks/evaluate_questions/{model}_{variant}_{questions}.tsv"
    conda:
        "../envs/lm_eval.yaml"
    resources:
        gpu=1,
    params:
        settings=lambda wildcards: without(question_sets[wildcards.questions], "name", "source"),
        limit=lambda wildcards: limit_flag(question_sets[wildcards.questions]),
        device=config["device"],
    message:
        "evaluate_questions: {wildcards.model} {wildcards.variant}, {wildcards.questions}"
    shell:
        "python {input.code[0]:q}"
        " --checkpoint {input.checkpoint:q}"
        " --name {wildcards.questions:q}"
        " --questions {input.questions:q}"
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
