"""Check that a model card shows the figures of the measurement files, and the settings they were measured with.

Each check raises InputError that names the file and the first key that differs.
"""

import math
from pathlib import Path

from int4_qat.config import metric_names, quantizations, variants
from int4_qat.quantization import record
from int4_qat.results import calibrated_bases, measured_files, measurements, units
from int4_qat.results.measurements import DIVERGENCE
from int4_qat.results.schema.divergence import Divergence
from int4_qat.system import files
from int4_qat.system.errors import InputError


def check(results: Path, name: str, summary: dict, settings: dict) -> None:
    """Raise InputError unless the summary is of this config, and the published variant is what the card will say."""
    found = [row["name"] for row in summary["variants"]]
    if found != settings["variants"]:
        expected = f"expected the variants {settings['variants']}"
        raise InputError(f"{results / 'summary.json'}: {expected}, found {found}")
    check_fresh(results, summary, settings)
    check_quantization(results / name, settings)
    check_settings(results / name, settings)
    check_calibration(results / name, calibrated_bases.behind(name, settings))


def check_fresh(results: Path, summary: dict, settings: dict) -> None:
    """Raise InputError if a figure that the summary repeats differs from its file."""
    shown_of = measurements.summarized(measurements.asked(settings))
    for row in summary["variants"]:
        for one in shown_of[row["name"]]:
            shown, content = measured_files.part(row, one) or {}, measured_files.read(results / row["name"], one)
            path = results / row["name"] / one.file
            if one is DIVERGENCE:
                check_texts(results / "summary.json", shown, path, content)
            else:
                compare(results / "summary.json", shown, path, content)


def check_texts(name: Path, shown: dict, path: Path, content: Divergence) -> None:
    """Raise InputError if a figure of a text differs from its file by more than another order of summation explains."""
    for text, found in content["texts"].items():
        for metric in metric_names.OF_TEXTS:
            ours, theirs = shown[text][metric]["value"], found[metric]
            if not math.isclose(ours, theirs, **units.ROUNDING):
                raise InputError(
                    f"{path}: {metric} of {text}: expected {ours}, as in {name}, found {theirs}; re-run the workflow"
                )


def check_settings(folder: Path, settings: dict) -> None:
    """Raise InputError if the published variant was measured with settings other than those that the card shows."""
    for one in measurements.asked(settings)[folder.name]:
        if one.setting:
            for ran in settings_of(measured_files.read(folder, one)):
                compare("the config", settings["evaluation"][one.setting], folder / one.file, ran)


def settings_of(content: dict) -> list[dict]:
    """Return the settings of a measurement: those of each text if it was made on texts, otherwise a single entry."""
    return list(content["protocol"].values()) if "protocol" in content else [content.get("settings", content)]


def check_quantization(folder: Path, settings: dict) -> None:
    """Raise InputError if any format of the published variant was quantized differently from what the card says."""
    wanted = settings["quantizations"][variants.split(folder.name)[1]]
    manifests = [folder / name / "manifest.json" for name in quantizations.folders(wanted)]
    for path in manifests:
        manifest = files.read_json(path)
        sorted_as_written = {"ignore": quantizations.training_words(wanted)["ignore"]}
        compare("the config", wanted | sorted_as_written, path, manifest["scheme"] | manifest)
    if len(manifests) > 1:
        for path in manifests:
            compare("a card of two formats", {"weights_that_differ": 0}, path, files.read_json(path))


def check_calibration(folder: Path, calibrated: dict | None) -> None:
    """Raise InputError if the published variant, or the base it started from, was not calibrated as the card says."""
    if calibrated:
        path = folder / "checkpoint" / record.CALIBRATION
        compare(
            "the config", {key: calibrated[key] for key in calibrated if key != "texts"}, path, files.read_json(path)
        )


def compare(name: Path | str, ours: dict, path: Path, theirs: dict) -> None:
    """Raise InputError naming the first key whose value differs between two files."""
    for key in sorted(ours.keys() & theirs.keys()):
        if key == "batches":
            sizes, expected = ([batch["batch_size"] for batch in each[key]] for each in (theirs, ours))
            if sizes != expected:
                expected = f"the batch sizes {expected}, as in {name}"
                raise InputError(f"{path}: {key}: expected {expected}, found {sizes}; re-run the workflow")
            for our_batch, their_batch in zip(ours[key], theirs[key], strict=True):
                compare(name, our_batch, path, their_batch)
        elif ours[key] != theirs[key]:
            raise InputError(
                f"{path}: {key}: expected {ours[key]}, as in {name}, found {theirs[key]}; re-run the workflow"
            )
