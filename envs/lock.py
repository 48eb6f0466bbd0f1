"""Carry the pins of pyproject.toml, each with its reason, into the environments: `make lock`.

An environment says only which packages it holds: for a new one, `- <name>` is enough.

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
APART = ["vllm", "openai", "lmms-eval"]  # these do not resolve together with the rest
HELD = ["torch"]  # the GPU tools, and the wheels for CPUs, are made for one version of it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="raise the pins of pyproject.toml first")
    if parser.parse_args().upgrade:
        PYPROJECT.write_text(upgrade(PYPROJECT.read_text()))
    pins = {pin["name"]: pin for pin in PIN.finditer(PYPROJECT.read_text())}
    for path in sorted(ENVIRONMENTS.glob("*.yaml")):
        path.write_text(fill(path.read_text(), pins))


def fill(environment: str, pins: dict[str, re.Match]) -> str:
    """The environment with the version and the reason of every package that it names."""
    head, mark, packages = environment.partition("dependencies:\n")
    return head + mark + PACKAGE.sub(lambda line: line[1] + pins[line[2]].expand(r"\1\2\3 # \4"), packages)


def upgrade(pyproject: str) -> str:
    """pyproject.toml with the newest versions from the index; those that conda installs stay."""
    pins = {pin["name"]: pin for pin in PIN.finditer(pyproject)}
    wanted = [
        name + f"=={pin['version']}" * (name in HELD)
        for name, pin in pins.items()
        if pin["equals"] == "==" and name not in APART
    ]
    command = ["uv", "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate", "--python-platform", "linux"]
    command += ["--python-version", pins["python"]["version"]]
    resolved = subprocess.run(command, input="\n".join(wanted), stdout=subprocess.PIPE, text=True, check=True).stdout
    newest = dict(line.split("==") for line in resolved.splitlines())

    def raised(pin: re.Match) -> str:
        if pin["name"] in APART:
            return pin[0]
        return pin[0].replace(f"=={pin['version']}", f"=={newest.get(pin['name'])}")

    return PIN.sub(raised, pyproject)


if __name__ == "__main__":
    main()
