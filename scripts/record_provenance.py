"""Write down where each result of a model comes from, as Snakemake recorded it when the result was made.

Starting at --targets, each file is traced back to what it was made from: rule, command line, settings, dates, and the
SHA-256 of every file on the way, down to programs and raw data. The output also holds the config, the commit of the
workflow, versions and devices. A result that was made from another version of its input than the present one is an
error. Nothing depends on this file, so a new commit or date re-runs nothing.

    python scripts/record_provenance.py --targets results/demo/summary.json --results results/demo \\
        --settings '{"model": "demo", ...}' --records .snakemake/metadata --output results/demo/provenance.json
"""

import argparse
import base64
import json
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

from int4_qat.results import measured_files, measurements
from int4_qat.system import errors, files, sources
from int4_qat.system.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", required=True, nargs="+", help="results whose origin is recorded")
    parser.add_argument("--results", required=True, type=Path, help="folder with the results of the model")
    parser.add_argument("--settings", required=True, type=json.loads, help="config of this model, as JSON")
    parser.add_argument("--records", required=True, type=Path, help="folder with Snakemake's metadata records")
    parser.add_argument("--output", required=True, type=Path, help="path of provenance.json")
    arguments = parser.parse_args()
    lineage = follow(arguments.targets, find_records(arguments.records))
    hashes = {path: hash_files(path) for path in sorted(lineage)}
    check_stale(lineage, hashes)
    provenance = {
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        "workflow": commit(ROOT),
        "settings": arguments.settings,
        "devices": devices(arguments.results, arguments.settings),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: package.version for name, package in sorted(packages().items())},
        "results": {portable(path): describe(record) for path, record in sorted(lineage.items()) if record},
        "files": {portable(file): found for each in hashes.values() for file, found in each.items()},
    }
    files.write_json(arguments.output, provenance)
    print(f"{len(provenance['results'])} results, {len(provenance['files'])} files")


def find_records(folder: Path) -> dict[str, Path]:
    """Return the file with Snakemake's record of each output.

    Its name is the output's path in base64, cut into folders if it is long.
    """
    records = {}
    for path in folder.rglob("*"):
        name = "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
        with suppress(ValueError):  # skips a file system's own files
            records[base64.urlsafe_b64decode(name).decode()] = path
    return records


def follow(targets: list[str], records: dict[str, Path]) -> dict[str, dict | None]:
    """Return the record of every file from the targets back; None for a program and for raw data.

    No other record is read, since another model's may be half written.
    """
    lineage: dict[str, dict | None] = {}
    waiting = list(targets)
    while waiting:
        path = waiting.pop()
        if path not in lineage:
            lineage[path] = files.read_json(records[path]) if path in records else None
            if lineage[path]:
                waiting += lineage[path]["input"]
            elif Path(path).parts[0] in sources.WRITTEN:
                raise InputError(
                    f"{path}: expected Snakemake's record of how it was made, found none; delete the file and re-run"
                )
    return lineage


def hash_files(path: str) -> dict[str, str]:
    """Return the SHA-256 of a file, or of each file in a folder."""
    place = Path(path)
    found = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    return {str(file): files.sha256(file.resolve()) for file in found if file.name != ".snakemake_timestamp"}


def check_stale(lineage: dict[str, dict | None], hashes: dict[str, dict[str, str]]) -> None:
    """Raise InputError if an input changed after a result was made from it; Snakemake hashes all but large inputs."""
    for path, record in lineage.items():
        for source, found in (record or {}).get("input_checksums", {}).items():
            if source in hashes.get(source, {}) and found != f"sha256:{hashes[source][source]}":
                raise InputError(
                    f"{path}: expected a result of the present {source}, found one of another; re-run the workflow"
                )


def describe(record: dict) -> dict:
    """Return what made a result, and when."""
    environment = record["conda_env"] and base64.b64decode(record["conda_env"]).decode()
    return {
        "rule": record["rule"],
        "command": record["shellcmd"].replace(f"{ROOT}/", ""),
        "settings": record["params"],
        "inputs": [portable(path) for path in record["input"]],
        "started": iso(record["starttime"]),
        "finished": iso(record["endtime"]),
        "conda_environment": environment,
    }


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def portable(path: str) -> str:
    """Return the path of a program relative to the workflow, wherever that is; return any other path as it is."""
    return str(Path(path).relative_to(ROOT)) if Path(path).is_relative_to(ROOT) else path


def commit(root: Path) -> dict:
    """Return the commit of the workflow and whether its files are those of the commit; both are None without git."""
    head = git(root, "rev-parse", "HEAD")
    changes = git(root, "status", "--porcelain")
    return {"commit": head and head.strip(), "clean": None if changes is None else not changes}


def git(root: Path, *words: str) -> str | None:
    try:
        return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def devices(results: Path, settings: dict) -> list[str]:
    """Return the names of the devices on which the figures that depend on a device were measured."""
    asked = [(name, one) for name, found in measurements.asked(settings).items() for one in found]
    return sorted(
        {measured_files.read(results / name, one)["device"] for name, one in asked if "device" in one.conditions}
    )


def packages() -> dict:
    """Return the packages installed with this program, by name."""
    return {package.metadata["Name"]: package for package in distributions()}


if __name__ == "__main__":
    errors.run(main)
