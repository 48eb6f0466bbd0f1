# Measure how far each variant's predictions of held-out texts are from base-bf16's.
#   in:  results/<model>/<variant>/checkpoint/, resources/texts/<text>.txt
#   out: results/<model>/<variant>/divergence.json, divergence_samples.parquet, results/<model>/<weights>-bf16/states/
# record_hidden_states also measures the variants in bf16, since a separate process would have to reload their models.


rule record_hidden_states:
    input:
        code=code_of("record_hidden_states"),
        checkpoint=f"results/{{model}}/{{weights}}-{variants.BF16}/checkpoint",
        base=lambda wildcards: of_base(wildcards, "checkpoint"),
        base_states=lambda wildcards: of_base(wildcards, "states"),
        texts=expand("resources/texts/{text}.txt", text=texts),
    output:
        states=directory(f"results/{{model}}/{{weights}}-{variants.BF16}/states"),
        report=f"results/{{model}}/{{weights}}-{variants.BF16}/divergence.json",
        samples=f"results/{{model}}/{{weights}}-{variants.BF16}/divergence_samples.parquet",
    log:
        "logs/{model}/record_hidden_states_{weights}.log",
    benchmark:
        "benchmarks/record_hidden_states/{model}_{weights}.tsv"
    conda:
        "../envs/quantize.yaml"
    resources:
        gpu=1,
    params:
        settings=lambda wildcards: without(evaluation("divergence"), "texts"),
        limit=lambda wildcards: limit_flag(evaluation("divergence")),
        base=lambda wildcards, input: base_flags(input),
        device=config["device"],
    message:
        "record_hidden_states: {wildcards.model} {wildcards.weights}"
    shell:
        "python {input.code[0]:q}"
        " --checkpoint {input.checkpoint:q}"
        " {params.base:q}"
        " --texts {input.texts:q}"
        " --context {params.settings[context]:q}"
        " {params.limit:q}"
        " --dtype {params.settings[dtype]:q}"
        " --device {params.device:q}"
        " --gpus {resources.gpu}"
        " --output {output.states:q}"
        " --report {output.report:q}"
        " --samples {output.samples:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"


rule evaluate_divergence:
    input:
        code=code_of("evaluate_divergence"),
        checkpoint="results/{model}/{variant}/checkpoint",
        base=f"results/{{model}}/{variants.BASELINE}/checkpoint",
        base_states=f"results/{{model}}/{variants.BASELINE}/states",
        own=lambda wildcards: f"results/{wildcards.model}/{weights_of(wildcards)}-{variants.BF16}/checkpoint",
        own_states=lambda wildcards: f"results/{wildcards.model}/{weights_of(wildcards)}-{variants.BF16}/states",
    output:
        report="results/{model}/{variant}/divergence.json",
        samples="results/{model}/{variant}/divergence_samples.parquet",
    log:
        "logs/{model}/evaluate_divergence_{variant}.log",
    benchmark:
        "benchmarks/evaluate_divergence/{model}_{variant}.tsv"
    wildcard_constraints:
        variant="|".join(quantized),
    conda:
        "../envs/quantize.yaml"
    resources:
        gpu=1,
    params:
        device=config["device"],
    message:
        "evaluate_divergence: {wildcards.model} {wildcards.variant}"
    shell:
        "python {input.code[0]:q}"
        " --checkpoint {input.checkpoint:q}"
        " --base {input.base:q}"
        " --base-states {input.base_states:q}"
        " --own {input.own:q}"
        " --own-states {input.own_states:q}"
        " --device {params.device:q}"
        " --gpus {resources.gpu}"
        " --report {output.report:q}"
        " --samples {output.samples:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
