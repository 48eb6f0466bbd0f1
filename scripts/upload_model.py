"""Upload a quantized variant and its model card to the Hub, if the results say that it may be published.

Each format goes into a repository of its own, since transformers and vLLM both load the root of one: -INT4 is added to
the name for torchao-plain, -W4A16 for compressed-tensors.

A variant may be published if the card describes it, the export is what training saw, no evaluation is missing, the
thresholds are outside the 95% intervals, the run wrote all files of the export, and every hash and number of the
results, the card's included, is verified. If a condition does not hold, one line says which, and nothing is sent. A
folder is uploaded in one commit; after a failure the next call sends what is missing. The token comes only from
HF_TOKEN in the environment. --dry-run contacts nobody: it shows what would be uploaded.

    python scripts/upload_model.py --results results/demo --variant qad-int4 --repository owner/name \\
        --recovered-at-least 0.0 --lost-at-most 0.15 --dry-run
"""

import argparse
import os
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import disable_progress_bars

from int4_qat.config import quantizations, variants
from int4_qat.data import hub
from int4_qat.results import calibrated_bases, measured_files, measurements, verification
from int4_qat.system import errors, files
from int4_qat.system.errors import InputError

CARD_NAME = "README.md"
WEIGHTS = (".safetensors", ".safetensors.index.json")  # files of an earlier upload would be loaded with the new ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", required=True, type=Path, help="folder with the results of the model")
    parser.add_argument("--variant", required=True, help="quantized variant to publish")
    parser.add_argument("--repository", help="<owner>/<name> on the Hub; each format adds its suffix")
    parser.add_argument(
        "--recovered-at-least",
        required=True,
        type=float,
        help="minimum for the low end of the interval of the headline's `recovered`",
    )
    parser.add_argument(
        "--lost-at-most",
        required=True,
        type=float,
        help="maximum for the high end of the interval of the headline's loss from base-bf16",
    )
    parser.add_argument("--public", action="store_true", help="make a new repository public, not private")
    parser.add_argument("--dry-run", action="store_true", help="show what would be uploaded; contact nobody")
    parser.add_argument("--output", type=Path, help="JSON file for what was uploaded, and where")
    arguments = parser.parse_args()
    token = None if arguments.dry_run else read_token()
    if token:
        hub.prepare(arguments.repository or "a repository", token)
    found = obstacles(arguments)
    if found:
        raise InputError(f"{arguments.variant} is not published: {'; '.join(found)}")
    settings = files.read_json(arguments.results / "provenance.json")["settings"]
    entry = calibrated_bases.entry_of(arguments.variant, settings)
    by_repository = {
        repository: contents_of(arguments.results, arguments.results / arguments.variant / folder)
        for folder, repository in quantizations.repositories(entry, arguments.repository).items()
    }
    if arguments.dry_run:
        for repository, contents in by_repository.items():
            print("\n".join(f"{name}: {path.stat().st_size} bytes" for name, path in contents.items()))
            visibility = "public" if arguments.public else "private"
            print(f"would be uploaded to {repository} ({visibility}): {amount(contents)}")
        return
    api, links = HfApi(token=token), {}
    disable_progress_bars()
    private = {repository: create(api, repository, arguments) for repository in by_repository}
    for repository, contents in by_repository.items():
        links[repository] = upload(api, repository, contents, arguments)
        print(f"{links[repository]} ({'private' if private[repository] else 'public'}): {amount(contents)}", flush=True)
    if arguments.output:
        hashes = {
            repository: {name: files.sha256(path.resolve()) for name, path in contents.items()}
            for repository, contents in by_repository.items()
        }
        published = {name: {"commit": links[name], "files": hashes[name]} for name in by_repository}
        files.write_json(arguments.output, {"repositories": published})


def amount(contents: dict[str, Path]) -> str:
    """Return how many files and bytes are uploaded, as text."""
    return f"{len(contents)} files, {sum(path.stat().st_size for path in contents.values())} bytes"


def obstacles(arguments: argparse.Namespace) -> list[str]:
    """Return the reasons not to publish; the verification, which reads everything, runs only if there is no other."""
    found = [] if arguments.repository else ["publish.repository names no repository"]
    found += missing_results(arguments.results, arguments.variant) or below_thresholds(arguments)
    found = found or unrecorded(arguments.results, arguments.variant)
    return found or verification.problems(arguments.results)


def missing_results(results: Path, variant: str) -> list[str]:
    """Return a line for each missing result, for another variant than the card's, or for an export that differs."""
    settings = files.read_json(results / "provenance.json")["settings"]
    if variant not in filter(variants.is_quantized, settings["variants"]):
        return [f"--variant: expected a quantized variant of {', '.join(settings['variants'])}, found {variant}"]
    if variant != (described := settings["card"]["variant"]):
        return [f"--variant: expected {described}, which the card describes, found {variant}"]
    folders = quantizations.folders(calibrated_bases.entry_of(variant, settings))
    manifests = [f"{variant}/{folder}/manifest.json" for folder in folders]
    asked = measurements.asked(settings)
    needed = measurements.to_publish(asked, variant)
    names = [*measured_files.paths(needed), "summary.json", "model_card.md", *manifests]
    absent = [f"{name} is missing" for name in names if not (results / name).exists()]
    if absent:
        return absent
    counted = [*manifests, *(f"{variant}/{one.file}" for one in asked[variant] if "weights_that_differ" in one.kept)]
    differing = sum(files.read_json(results / name)["weights_that_differ"] for name in counted)
    return [f"{differing} exported weights differ from what training saw"] if differing else []


def unrecorded(results: Path, variant: str) -> list[str]:
    """Return a line for each file that would be uploaded and that the run did not write, which nothing verifies."""
    recorded = files.read_json(results / "provenance.json")
    entry, run = calibrated_bases.entry_of(variant, recorded["settings"]), f"results/{recorded['settings']['model']}"
    names = [
        f"{variant}/{folder}/{name}"
        for folder in quantizations.folders(entry)
        for name in contents_of(results, results / variant / folder).keys() - {CARD_NAME}
    ]
    others = sorted(name for name in names if f"{run}/{name}" not in recorded["files"])
    return [f"{name}: expected a file of the run, found another" for name in others]


def below_thresholds(arguments: argparse.Namespace) -> list[str]:
    """Return a line for each threshold that the intervals do not clear."""
    summary, name = files.read_json(arguments.results / "summary.json"), arguments.variant
    (row,) = (row for row in summary["variants"] if row["name"] == name)
    headline = summary["headline"]["metric"]
    wanted = (headline, name, variants.BASELINE)
    pairs = [pair for pair in summary["comparisons"] if (pair["metric"], pair["variant"], pair["reference"]) == wanted]
    if not pairs:
        return [f"expected an interval of {headline}, found none"]
    least, most, lost = arguments.recovered_at_least, arguments.lost_at_most, -pairs[0]["difference_ci95"][0]
    found = []
    if not row["recovered_resolved"]:
        found.append(f"recovered of {headline} is not resolved")
    elif row["recovered_ci95"][0] < least:
        low = f"recovered of {headline} may be as low as {row['recovered_ci95'][0]:.4f}"
        found.append(f"{low}, expected at least {least:g}")
    if lost > most:
        found.append(f"the loss of {headline} may be as high as {lost:.4f}, expected at most {most:g}")
    return found


def contents_of(results: Path, folder: Path) -> dict[str, Path]:
    """Return the files to upload by their names on the Hub: a folder's, with the card in place of the base model's."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if not name.startswith(".")} | {
        CARD_NAME: results / "model_card.md"
    }


def read_token() -> str:
    """Return the token from the environment alone; a login on this machine is not used."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise InputError("HF_TOKEN: expected a token with write access, found none in the environment")
    return token


def create(api: HfApi, repository: str, arguments: argparse.Namespace) -> bool:
    """Create a repository unless it exists, and return whether it is private.

    Raise InputError if the Hub refuses, or if an existing one is public and may not be.
    """
    try:
        api.create_repo(repository, private=not arguments.public, exist_ok=True)
        is_private = api.repo_info(repository).private
    except hub.FAILURES as error:
        raise refused(repository, error, arguments) from None
    if not is_private and not arguments.public:
        raise InputError(
            f"{repository}: expected a private repository, found a public one; set publish.private to false"
        )
    return is_private


def upload(api: HfApi, repository: str, contents: dict[str, Path], arguments: argparse.Namespace) -> str:
    """Upload in one commit, after which the only weights there are these; return its link.

    Raise InputError if the Hub refuses.
    """
    try:
        stale = {name for name in api.list_repo_files(repository) if name.endswith(WEIGHTS)} - contents.keys()
        additions = [CommitOperationAdd(name, str(path)) for name, path in contents.items()]
        return api.create_commit(
            repository,
            [*additions, *map(CommitOperationDelete, sorted(stale))],
            commit_message=f"{arguments.variant}: weights and model card",
        ).commit_url
    except hub.FAILURES as error:
        raise refused(repository, error, arguments) from None


def refused(repository: str, error: Exception, arguments: argparse.Namespace) -> InputError:
    """Return what the Hub refused, as an InputError of one line."""
    return InputError(f"{repository}: the upload failed: {hub.explain(error, arguments.results)}")


if __name__ == "__main__":
    errors.run(main)
