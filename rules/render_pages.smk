# Render the pages that `snakemake --report report.html` puts before the plots and the run times.
#   in:  results/<model>/model_card.md, provenance.json, costs.json
#   out: results/<model>/report/


localrules:
    render_pages,


rule render_pages:
    input:
        code=code_of("render_pages"),
        templates=expand(f"{workflow.basedir}/scripts/templates/{{page}}.html.jinja", page=["page", "results", "run"]),
        card=rules.model_card.output[0],
        provenance=rules.record_provenance.output[0],
        costs=rules.report_costs.output.json,
    output:
        results=report(
            "results/{model}/report/results.html",
            category="1 Results",
            caption="captions/results.rst",
            labels={"model": "{model}", "page": "model card"},
        ),
        run=report(
            "results/{model}/report/run.html",
            category="3 Run",
            caption="captions/run.rst",
            labels={"model": "{model}", "page": "configuration, versions, costs"},
        ),
    log:
        "logs/{model}/render_pages.log",
    benchmark:
        "benchmarks/render_pages/{model}.tsv"
    conda:
        "../envs/data.yaml"
    message:
        "render_pages: {wildcards.model}"
    shell:
        "python {input.code[0]:q}"
        " --card {input.card:q}"
        " --provenance {input.provenance:q}"
        " --costs {input.costs:q}"
        " --results-page {output.results:q}"
        " --run-page {output.run:q}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"
