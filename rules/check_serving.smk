# Serve a quantized checkpoint with vLLM, to check that it answers and to measure how fast.
#   in:  results/<model>/<variant>/compressed-tensors/; checkpoint/ for transformers, to compare with
#   out: results/<model>/<variant>/serving.json; vLLM's JSON and logs in vllm/


rule check_serving:
    input:
        code=code_of("check_serving"),
        checkpoint="results/{model}/{variant}/checkpoint",
        served=served(quantizations.VLLM),
    output:
        "results/{model}/{variant}/serving.json",
    log:
        "logs/{model}/check_serving_{variant}.log",
    benchmark:
        "benchmarks/check_serving/{model}_{variant}.tsv"
    conda:
        "../envs/vllm.yaml"
    resources:
        gpu=1,
        # This is not a param, since changing it must not run anything again.
        time_limit=lambda wildcards: config["evaluation"]["serving"]["time_limit"],
    params:
        settings=lambda wildcards: without(evaluation("serving"), "time_limit"),
        # This is not an output, since Snakemake deletes the outputs of a job that fails.
        vllm_runs="results/{model}/{variant}/vllm",
        vllm_arguments=lambda wildcards: config["evaluation"]["serving"]["vllm_arguments"],
        device=config["device"],
    message:
        "check_serving: {wildcards.model} {wildcards.variant}"
    shell:
        "python {input.code[0]:q}"
        " --checkpoint {input.checkpoint:q}"
        " --served {input.served:q}"
        " --dtype {params.settings[dtype]:q}"
        " --concurrency {params.settings[concurrency]:q}"
        " --max-tokens {params.settings[max_tokens]:q}"
        " --time-limit {resources.time_limit}"
        " --device {params.device:q}"
        " --gpus {resources.gpu}"
        " --vllm-runs {params.vllm_runs:q}"
        " --output {output:q}"
        " -- {params.vllm_arguments:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
