"""Fetch a base model into a local folder: from the Hub at a pinned commit, or as links to a local folder's files.

Only safetensors, JSON, tokenizer and template files are taken: no pickle, no code. Whatever would stop a later stage,
or pass it and be wrong, stops this one with a one-line message: layers other than plain linears, weights that are of
other types, not finite or of another model, adapters, settings of other weights, or a tokenizer that loses text.

Before the output is moved into place, the settings of the workflow, if given, are checked against the facts about the
model. These facts are kept in --facts, for checking another config.

    python scripts/download_model.py --source /models/gemma-3-12b-it --output resources/models/gemma-3-12b-it
"""

import argparse
import json
from pathlib import Path

from int4_qat.checkpoint import model_folder
from int4_qat.config import model_facts
from int4_qat.data import hub
from int4_qat.system import errors, files
from int4_qat.system.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="hf://<owner>/<name>@<commit> or a local folder")
    parser.add_argument("--settings", type=json.loads, help="config of this model, as JSON, to be checked")
    parser.add_argument("--results", type=Path, help="folder for the results; its disk must have enough space for them")
    parser.add_argument("--facts", type=Path, help="JSON file for the facts that a config is checked against")
    parser.add_argument("--output", required=True, type=Path, help="folder for the model")
    arguments = parser.parse_args()
    remote, facts = hub.parse(arguments.source), {}
    with files.whole(arguments.output) as folder:
        if remote:
            hub.download(
                remote,
                folder,
                list(model_folder.PATTERNS),
                left_out=model_folder.SECOND_COPIES,
                refuse_unusable=lambda found: facts.update(check(found, arguments)),
            )
            model_folder.leave_out(folder)
        else:
            link(Path(arguments.source), folder)
            facts.update(check(folder, arguments))
    if arguments.facts:
        named = arguments.settings["source"] if arguments.settings else arguments.source
        files.write_json(arguments.facts, {"source": named} | facts)


def link(source: Path, folder: Path) -> None:
    """Make a folder of links to the files that count of a local model, so that not many gigabytes are copied."""
    if not source.is_dir():
        raise InputError(f"{source}: expected a folder with a model, found none")
    files.link(source, folder, model_folder.taken(source))


def check(folder: Path, arguments: argparse.Namespace) -> dict:
    """Return the facts about the model; raise InputError, naming its source, if a later stage could not use it."""
    # These imports take seconds, so they come after the Hub's own refusals.
    from int4_qat.quantization import requirements
    from int4_qat.tokenizer import tokenizer_check

    try:
        model_folder.taken(folder)
        checkpoint = requirements.refuse_unsupported(folder)
        tokenizer_check.refuse_unusable(folder)
        facts = requirements.describe(folder, checkpoint)
        if arguments.settings:
            refuse_misfits(facts, arguments)
            requirements.refuse_wrong_marks(folder, arguments.settings["arms"])
        return facts
    except InputError as error:
        raise InputError(str(error).replace(str(folder), arguments.source.rstrip("/"))) from None


def refuse_misfits(facts: dict, arguments: argparse.Namespace) -> None:
    """Raise InputError for the first of the settings that does not fit the model or the disk."""
    for line in model_facts.misfits(facts, arguments.settings):
        raise InputError(line)
    for line in model_facts.full_disk(facts, arguments.settings, arguments.results) if arguments.results else ():
        raise InputError(line)


if __name__ == "__main__":
    errors.run(main)
