"""Make the two pages that the report shows next to the plots: the results, and the run that they come from.

The results page is the model card as HTML. The run page shows the config, commit, versions, devices, and what each
stage took.

    python scripts/render_pages.py --card results/demo/model_card.md --provenance results/demo/provenance.json \\
        --costs results/demo/costs.json --results-page results/demo/report/results.html \\
        --run-page results/demo/report/run.html
"""

import argparse
import json
from pathlib import Path

import jinja2
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from int4_qat.system import errors, files

TEMPLATES = Path(__file__).parent / "templates"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", required=True, type=Path, help="path of model_card.md")
    parser.add_argument("--provenance", required=True, type=Path, help="path of provenance.json")
    parser.add_argument("--costs", required=True, type=Path, help="path of costs.json")
    parser.add_argument("--results-page", required=True, type=Path, help="HTML file for the model card")
    parser.add_argument("--run-page", required=True, type=Path, help="HTML file for the config, versions and costs")
    arguments = parser.parse_args()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clock"] = clock
    card = MarkdownIt("commonmark").enable("table").render(ModelCard.load(arguments.card).text)
    provenance = files.read_json(arguments.provenance)
    pages = {
        arguments.results_page: environment.get_template("results.html.jinja").render(card=card),
        arguments.run_page: environment.get_template("run.html.jinja").render(
            run=provenance,
            settings=json.dumps(provenance["settings"], indent=2),
            costs=files.read_json(arguments.costs),
        ),
    }
    for path, page in pages.items():
        with files.whole(path) as unfinished:
            unfinished.write_text(page, encoding="utf-8")


def clock(hours: float) -> str:
    """Return a time as h:mm:ss."""
    minutes, seconds = divmod(round(3600 * hours), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


if __name__ == "__main__":
    errors.run(main)
