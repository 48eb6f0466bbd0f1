"""Print the config that a run would use, as YAML, or what is wrong with it; the options are Snakemake's own.

    python scripts/show_config.py --configfile profiles/demo/demo.yaml --config "standin={seed: 1}"

Folders are looked up from the working directory, as Snakemake does without --directory.
"""

import argparse
import json
from pathlib import Path

import yaml
from snakemake.cli import parse_config
from snakemake.exceptions import WorkflowError
from snakemake.settings.types import ConfigSettings

from int4_qat.config import config_values, workflow_config
from int4_qat.system import errors
from int4_qat.system.errors import InputError

WORKFLOW = Path(__file__).parents[1]


def main() -> None:
    arguments = parse_arguments()
    settings = given(arguments.configfile, arguments.config)
    configfiles = [*settings.configfiles, WORKFLOW / "config.yaml"]
    config = workflow_config.of_run(str(WORKFLOW), settings.overwrite_config, settings.config, configfiles)
    print(as_yaml(config), end="")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", nargs="+", default=[], type=Path, help="files that override config.yaml")
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="entries that override all files")
    return parser.parse_args()


def given(files: list[Path], entries: list[str]) -> ConfigSettings:
    """Return what Snakemake makes of the same options; raise InputError if it would refuse them."""
    for path in files:
        if not path.is_file():
            raise InputError(f"{path}: expected a config file, found none")
        if mistake := config_values.syntax_problem(path):
            raise InputError(mistake)
    try:
        return ConfigSettings(config=parse_config(entries), configfiles=files)
    except (WorkflowError, ValueError) as error:
        raise InputError(errors.one_line(error)) from error


def as_yaml(config: dict) -> str:
    """Return a config as YAML with its keys in order, without the types and anchors of the files that it came from."""
    plain = json.loads(json.dumps(config))
    return yaml.dump(plain, Dumper=OneLineTexts, sort_keys=False, allow_unicode=True, width=120)


class OneLineTexts(yaml.SafeDumper):
    """A YAML dumper that writes the end of a line in a text as \\n, as people do."""


def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


OneLineTexts.add_representer(str, represent_text)


if __name__ == "__main__":
    errors.run(main)
