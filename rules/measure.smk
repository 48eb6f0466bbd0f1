# Measure the memory and the time that a variant needs.
#   in:  results/<model>/<variant>/checkpoint/; for latency in vLLM the variant's compressed-tensors/
#   out: results/<model>/<variant>/memory.json, latency.json; with vLLM also its JSON and logs, in vllm/


rule measure_memory:
    input:
        code=code_of("measure_memory"),
        checkpoint="results/{model}/{variant}/checkpoint",
    output:
        "results/{model}/{variant}/memory.json",
    log:
        "logs/{model}/measure_memory_{variant}.log",
    benchmark:
        "benchmarks/measure_memory/{model}_{variant}.tsv"
    conda:
        "../envs/quantize.yaml"
    resources:
        gpu=1,
    params:
        settings=evaluation("memory"),
        device=config["device"],
    message:
        "measure_memory: {wildcards.model} {wildcards.variant}"
    shell:
        "python {input.code[0]:q}"
        " --checkpoint {input.checkpoint:q}"
        " --dtype {params.settings[dtype]:q}"
        " --max-new-tokens {params.settings[max_new_tokens]:q}"
        " --device {params.device:q}"
        " --output {output:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"


rule measure_latency:
    input:
        code=code_of("measure_latency"),
        checkpoint=served(config["evaluation"]["latency"]["engine"]),
    output:
        "results/{model}/{variant}/latency.json",
    log:
        "logs/{model}/measure_latency_{variant}.log",
    benchmark:
        "benchmarks/measure_latency/{model}_{variant}.tsv"
    conda:
        "../envs/vllm.yaml"
    resources:
        gpu=1,
        # This is not a param, since changing it must not measure anything again.
        time_limit=config["evaluation"]["latency"]["vllm_time_limit"],
    params:
        settings=without(evaluation("latency"), "vllm_time_limit"),
        # This is not an output, since Snakemake deletes the outputs of a job that fails.
        vllm_runs="results/{model}/{variant}/vllm",
        vllm_arguments=config["evaluation"]["latency"]["vllm_arguments"],
        device=config["device"],
    message:
        "measure_latency: {wildcards.model} {wildcards.variant}"
    shell:
        "python {input.code[0]:q}"
        " --checkpoint {input.checkpoint:q}"
        " --engine {params.settings[engine]:q}"
        " --dtype {params.settings[dtype]:q}"
        " --input-len {params.settings[input_len]:q}"
        " --output-len {params.settings[output_len]:q}"
        " --batch-sizes {params.settings[batch_sizes]:q}"
        " --warmup {params.settings[warmup]:q}"
        " --iterations {params.settings[iterations]:q}"
        " --repeats {params.settings[repeats]:q}"
        " --device {params.device:q}"
        " --gpus {resources.gpu}"
        " --vllm-runs {params.vllm_runs:q}"
        " --vllm-time-limit {resources.time_limit}"
        " --output {output:q}"
        " -- {params.vllm_arguments:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
