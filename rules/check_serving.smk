# vLLM's server on a quantized checkpoint: does it answer, and how fast.
#   in:  results/<model>/<variant>/checkpoint/
#   out: results/<model>/<variant>/serving.json; the server's log in vllm/


rule check_serving:
    input:
        code=code_of("check_serving"),
        checkpoint="results/{model}/{variant}/checkpoint",
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
    params:
        settings=lambda wildcards: evaluation("serving"),
        vllm_log="results/{model}/{variant}/vllm/serve.log",
        vllm_arguments=lambda wildcards: config["evaluation"]["serving"]["vllm_arguments"],
        device=config["device"],
    message:
        "check_serving: {wildcards.model} {wildcards.variant}"
    shell:
        "python {input.code[0]:q}"
        " --checkpoint {input.checkpoint:q}"
        " --dtype {params.settings[dtype]:q}"
        " --concurrency {params.settings[concurrency]:q}"
        " --max-tokens {params.settings[max_tokens]:q}"
        " --time-limit {params.settings[time_limit]:q}"
        " --device {params.device:q}"
        " --vllm-log {params.vllm_log:q}"
        " --output {output:q}"
        " -- {params.vllm_arguments:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
