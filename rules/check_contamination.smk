# Count the test questions, MMLU's and your own, that occur in the training texts, and the held-out text that occurs in
# what a run trains or calibrates on.
#   in:  resources/mmlu_train/auxiliary_train.parquet, resources/mmlu/test.parquet, resources/questions/<questions>/,
#        resources/texts/<text>.txt or .jsonl
#   out: resources/contamination.json, resources/text_contamination.json


rule check_contamination:
    input:
        code=code_of("check_contamination"),
        train=rules.download_mmlu_train.output.questions,
        mmlu=["resources/mmlu/test.parquet"] if mmlu_asked else [],
        questions=expand("resources/questions/{questions}", questions=question_sets),
        texts=paths_of_texts(general_texts, questions=None),
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
        texts=lambda wildcards, input: named(general_texts, input.texts),
    message:
        "check_contamination"
    shell:
        "python {input.code[0]:q}"
        " --train {input.train:q}"
        " --test {params.mmlu:q} {params.questions:q}"
        " --texts {params.texts:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"


# This check needs no model, so it runs early. The summary waits for it; training and calibration do not.
rule check_texts:
    input:
        code=code_of("check_texts"),
        held_out=expand("resources/texts/{text}.txt", text=texts),
        training=paths_of_texts(trained_on, rules.check_contamination.input.train),
        calibration=paths_of_texts(calibrated_on, rules.check_contamination.input.train),
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
        held_out=lambda wildcards, input: named(texts, input.held_out),
        training=lambda wildcards, input: named(trained_on, input.training),
        calibration=lambda wildcards, input: named(calibrated_on, input.calibration),
    message:
        "check_texts"
    shell:
        "python {input.code[0]:q}"
        " --held-out {params.held_out:q}"
        " --training {params.training:q}"
        " --calibration {params.calibration:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
