# Download raw data and base models. Only these rules and upload_model use the network.
#   in:  the Hub at a pinned commit, a local folder, or the stand-in
#   out: resources/mmlu_train/auxiliary_train.parquet, resources/mmlu/<split>.parquet, resources/models/<model>/ and
#        <model>.json, resources/datasets/<dataset>/, resources/questions/<questions>/, resources/texts/<text>.txt, or
#        .jsonl of conversations


rule make_standin:
    input:
        code=code_of("make_standin"),
    output:
        mmlu=directory("resources/standin/mmlu"),
        model=directory("resources/standin/model"),
        text=directory("resources/standin/text"),
    log:
        "logs/make_standin.log",
    benchmark:
        "benchmarks/make_standin/standin.tsv"
    conda:
        "../envs/lm_eval.yaml"
    params:
        seed=lambda wildcards: config["standin"]["seed"],
        int4_cost=lambda wildcards: config["standin"]["int4_cost"],
    message:
        "make_standin"
    shell:
        "python {input.code[0]:q}"
        " --output resources/standin"
        " --seed {params.seed:q}"
        " --int4-cost {params.int4_cost:q}"
        " 2>&1 | show {log:q}"


# The questions to train on come by a rule of their own, so that evaluating MMLU or not retrains nothing.
rule download_mmlu_train:
    input:
        code=code_of("download_mmlu"),
        raw=source_input(config["data"]["source"], "resources/standin/mmlu"),
    output:
        questions=f"resources/mmlu_train/{mmlu.TRAIN_SPLIT}.parquet",
        report="resources/mmlu_train/report.json",
    log:
        "logs/download_mmlu_train.log",
    benchmark:
        "benchmarks/download_mmlu_train/mmlu.tsv"
    conda:
        "../envs/data.yaml"
    params:
        source=source_path(config["data"]["source"], "resources/standin/mmlu"),
        split=mmlu.TRAIN_SPLIT,
        # What MMLU asks is checked before anything is trained. Snakemake ignores changes of a param that a function
        # computes from `input`, so neither MMLU nor another number of shots downloads or trains anything again.
        check=lambda wildcards, input: (
            ["--check", *mmlu.EVALUATION_SPLITS, f"--num-fewshot={evaluation('mmlu')['num_fewshot']}"]
            if mmlu_asked
            else []
        ),
    message:
        "download_mmlu_train"
    shell:
        "online python {input.code[0]:q}"
        " --source={params.source:q}"
        " --splits {params.split}"
        " {params.check:q}"
        " --output resources/mmlu_train"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"


rule download_mmlu:
    input:
        code=code_of("download_mmlu"),
        raw=source_input(config["data"]["source"], "resources/standin/mmlu"),
    output:
        splits=expand("resources/mmlu/{split}.parquet", split=mmlu.EVALUATION_SPLITS),
        report="resources/mmlu/report.json",
    log:
        "logs/download_mmlu.log",
    benchmark:
        "benchmarks/download_mmlu/mmlu.tsv"
    conda:
        "../envs/data.yaml"
    params:
        source=source_path(config["data"]["source"], "resources/standin/mmlu"),
        # Ignored as above. The check of the config knows what was downloaded.
        num_fewshot=lambda wildcards, input: evaluation("mmlu")["num_fewshot"],
        splits=mmlu.EVALUATION_SPLITS,
    message:
        "download_mmlu"
    shell:
        "online python {input.code[0]:q}"
        " --source={params.source:q}"
        " --splits {params.splits:q}"
        " --num-fewshot {params.num_fewshot}"
        " --output resources/mmlu"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"


rule download_model:
    input:
        code=code_of("download_model"),
        raw=lambda wildcards: source_input(config["models"][wildcards.model]["source"], "resources/standin/model"),
    output:
        folder=directory("resources/models/{model}"),
        facts="resources/models/{model}.json",
    log:
        "logs/{model}/download_model.log",
    benchmark:
        "benchmarks/download_model/{model}.tsv"
    conda:
        "../envs/quantize.yaml"
    params:
        source=lambda wildcards: source_path(config["models"][wildcards.model]["source"], "resources/standin/model"),
        # As with num_fewshot, a change re-runs nothing. The settings decide only what is refused, and the check of the
        # config knows the facts.
        settings=lambda wildcards, input: settings(wildcards),
        results="results/{model}",
    message:
        "download_model: {wildcards.model}"
    shell:
        "online python {input.code[0]:q}"
        " --source={params.source:q}"
        " --settings {params.settings:q}"
        " --results {params.results:q}"
        " --facts {output.facts:q}"
        " --output {output.folder:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"


rule download_dataset:
    input:
        code=code_of("download_dataset"),
        raw=lambda wildcards: sources.local_files(data_sources[wildcards.dataset]),
    output:
        directory("resources/datasets/{dataset}"),
    log:
        "logs/download_dataset_{dataset}.log",
    benchmark:
        "benchmarks/download_dataset/{dataset}.tsv"
    conda:
        "../envs/data.yaml"
    params:
        source=lambda wildcards: data_sources[wildcards.dataset],
    message:
        "download_dataset: {wildcards.dataset}"
    shell:
        "online python {input.code[0]:q}"
        " --source={params.source:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"


rule download_questions:
    input:
        code=code_of("download_questions"),
        raw=lambda wildcards: sources.local_files(question_sets[wildcards.questions]["source"]),
    output:
        directory("resources/questions/{questions}"),
    log:
        "logs/download_questions_{questions}.log",
    benchmark:
        "benchmarks/download_questions/{questions}.tsv"
    conda:
        "../envs/data.yaml"
    params:
        source=lambda wildcards: question_sets[wildcards.questions]["source"],
        # As with MMLU, another number of shots re-runs no download. evaluate_questions counts the examples too.
        num_fewshot=lambda wildcards, input: question_sets[wildcards.questions]["num_fewshot"],
    message:
        "download_questions: {wildcards.questions}"
    shell:
        "online python {input.code[0]:q}"
        " --source={params.source:q}"
        " --name {wildcards.questions:q}"
        " --num-fewshot {params.num_fewshot:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"


rule download_text:
    input:
        code=code_of("download_text"),
        raw=lambda wildcards: source_input(brought_texts[wildcards.text_file]["source"], "resources/standin/text"),
    output:
        "resources/texts/{text_file}",
    log:
        "logs/download_text_{text_file}.log",
    benchmark:
        "benchmarks/download_text/{text_file}.tsv"
    conda:
        "../envs/data.yaml"
    params:
        source=lambda wildcards: source_path(brought_texts[wildcards.text_file]["source"], "resources/standin/text"),
        options=lambda wildcards: [
            f"--{key}={value}" for key, value in sorted(without(brought_texts[wildcards.text_file], *SAID).items())
        ],
    message:
        "download_text: {wildcards.text_file}"
    shell:
        "online python {input.code[0]:q}"
        " --source={params.source:q}"
        " {params.options:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
