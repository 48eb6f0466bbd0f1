# lm-eval's mmlu, the same settings for every variant.
#   in:  results/<model>/<variant>/checkpoint/, resources/mmlu/{dev,validation,test}.parquet
#   out: results/<model>/<variant>/mmlu.json, mmlu_samples.parquet


rule evaluate_mmlu:
    input:
        code=code_of("evaluate_mmlu"),
        checkpoint="results/{model}/{variant}/checkpoint",
        mmlu=expand("resources/mmlu/{split}.parquet", split=mmlu.EVALUATION_SPLITS),
    output:
        report="results/{model}/{variant}/mmlu.json",
        samples="results/{model}/{variant}/mmlu_samples.parquet",
    log:
        "logs/{model}/evaluate_mmlu_{variant}.log",
    benchmark:
        "benchmarks/{model}/evaluate_mmlu_{variant}.tsv"
    conda:
        "../envs/lm_eval.yaml"
    resources:
        gpu=1,
    params:
        settings=evaluation("mmlu"),
        limit=[f"--limit={n}" for n in [config["evaluation"]["mmlu"]["limit"]] if n is not None],
        device=device,
    shell:
        "python {input.code[0]:q}"
        " --checkpoint {input.checkpoint:q}"
        " --mmlu resources/mmlu"
        " --num-fewshot {params.settings[num_fewshot]}"
        " {params.limit:q}"
        " --batch-size {params.settings[batch_size]}"
        " --dtype {params.settings[dtype]}"
        " --device {params.device}"
        " --output {output.report:q}"
        " --samples {output.samples:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
