"""Carry the pins of pyproject.toml, each with its reason, into the environments: `make lock`.

An environment says only which packages it holds: for a new one, `- <name>` is enough. The pins in pyproject.toml's
[tool.<environment>] are that environment's alone and go before the others.

    python envs/lock.py            # envs/*.yaml from pyproject.toml
    python envs/lock.py --upgrade  # first raise pyproject.toml's pins to the newest that resolve together, with uv
"""

import argparse
import re
import subprocess
from pathlib import Path

ENVIRONMENTS = Path(__file__).parent
PYPROJECT = ENVIRONMENTS.parent / "pyproject.toml"
PIN = re.compile(r'^ +"(?P<name>[\w.-]+)(?P<equals>==?)(?P<version>[^"]+)", *# (?P<reason>.+)$', re.MULTILINE)
PACKAGE = re.compile(r"^( +- )([\w.-]+)(?:[ =].*)?$", re.MULTILINE)
SECTION = re.compile(r"^(?=\[)", re.MULTILINE)
HELD = ["torch"]  # the GPU tools, and the wheels for CPUs, are made for one version of it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="raise the pins of pyproject.toml first")
    if parser.parse_args().upgrade:
        PYPROJECT.write_text(upgrade(PYPROJECT.read_text()))
    pyproject = PYPROJECT.read_text()
    for path in paths():
        path.write_text(fill(path.read_text(), pins(pyproject) | pins(pyproject, path.stem)))


def paths() -> list[Path]:
    """Return the files of the environments."""
    return sorted(ENVIRONMENTS.glob("*.yaml"))


def owner(section: str) -> str | None:
    """Return the environment that a section of pyproject.toml is for, None if it is for all."""
    name = section.partition("]")[0].removeprefix("[tool.")
    return name if name in {path.stem for path in paths()} else None


def pins(pyproject: str, environment: str | None = None) -> dict[str, re.Match]:
    """Return the pins for all environments, or for a single one, by package."""
    sections = [section for section in SECTION.split(pyproject) if owner(section) == environment]
    return {pin["name"]: pin for section in sections for pin in PIN.finditer(section)}


def fill(environment: str, pinned: dict[str, re.Match]) -> str:
    """Return an environment's text with the version and the reason of every package that it names."""
    head, mark, packages = environment.partition("dependencies:\n")
    return head + mark + PACKAGE.sub(lambda line: line[1] + pinned[line[2]].expand(r"\1\2\3 # \4"), packages)


def upgrade(pyproject: str) -> str:
    """Return pyproject.toml with the newest versions from the index, except conda's own and a single environment's."""
    pinned = pins(pyproject)
    wanted = [name + f"=={pin['version']}" * (name in HELD) for name, pin in pinned.items() if pin["equals"] == "=="]
    command = ["uv", "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate", "--python-platform", "linux"]
    command += ["--python-version", pinned["python"]["version"]]
    resolved = subprocess.run(command, input="\n".join(wanted), stdout=subprocess.PIPE, text=True, check=True).stdout
    newest = dict(line.split("==") for line in resolved.splitlines())

    def raised(pin: re.Match) -> str:
        return pin[0].replace(f"=={pin['version']}", f"=={newest.get(pin['name'])}")

    return "".join(section if owner(section) else PIN.sub(raised, section) for section in SECTION.split(pyproject))


if __name__ == "__main__":
    main()
