# Test questions that stand in the training texts, MMLU's and one's own; held-out text that stands in calibration texts.
#   in:  resources/mmlu/{auxiliary_train,test}.parquet, resources/questions/<questions>/, resources/texts/<text>.txt
#   out: resources/contamination.json, resources/text_contamination.json


rule check_contamination:
    input:
        code=code_of("check_contamination"),
        train=f"resources/mmlu/{mmlu.TRAIN_SPLIT}.parquet",
        mmlu=["resources/mmlu/test.parquet"] if mmlu_asked else [],
        questions=expand("resources/questions/{questions}", questions=question_sets),
        texts=expand("resources/texts/{text}.txt", text=general_texts),
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
        texts=lambda wildcards, input: [f"{name}={path}" for name, path in zip(general_texts, input.texts)],
    message:
        "check_contamination"
    shell:
        "python {input.code[0]:q}"
        " --train {input.train:q}"
        " --test {params.mmlu:q} {params.questions:q}"
        " --texts {params.texts:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"


# By what there is before a model, so that it comes early; the summary waits for it, and no calibration.
rule check_texts:
    input:
        code=code_of("check_texts"),
        held_out=expand("resources/texts/{text}.txt", text=texts),
        general=expand("resources/texts/{text}.txt", text=general_texts),
        questions=(
            [f"resources/mmlu/{mmlu.TRAIN_SPLIT}.parquet"]
            if calibration.QUESTIONS in calibration.texts_of(config)
            else []
        ),
    output:
        "resources/text_contamination.json",
    log:
        "logs/check_texts.log",
    benchmark:
        "benchmarks/check_texts/texts.tsv"
    priority: 1
    conda:
        "../envs/data.yaml"
    params:
        held_out=lambda wildcards, input: [f"{name}={path}" for name, path in zip(texts, input.held_out)],
        general=lambda wildcards, input: [f"{name}={path}" for name, path in zip(general_texts, input.general)],
        questions=lambda wildcards, input: [f"{calibration.QUESTIONS}={path}" for path in input.questions],
    message:
        "check_texts"
    shell:
        "python {input.code[0]:q}"
        " --held-out {params.held_out:q}"
        " --calibration {params.general:q} {params.questions:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
