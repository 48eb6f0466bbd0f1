"""Test the environments of envs/: their pins, what these resolve to, and a Snakemake run that creates and uses one."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import rattler
import yaml
from packaging.utils import canonicalize_name

from int4_qat.system import rooms, sources
from programs import ROOT
from workflows import copy_workflow, small_config, snakemake, write_config

pytestmark = pytest.mark.slow

ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))
PYPROJECT = ROOT / "pyproject.toml"
LOCK = ROOT / "requirements.lock"
# Programs that load files named by the config, keyed by the function of common.smk that lists their code.
LOADED = {
    "finetune_code": ("finetune", [rooms.BACKENDS]),
    "calibrate_code": ("calibrate", [rooms.METHODS]),
    "quantize_code": ("quantize", [rooms.METHODS, rooms.FORMATS]),
    "parity_code": ("check_parity", [rooms.METHODS, rooms.FORMATS]),
}
each_environment = pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)


def dependencies(path: Path) -> tuple[list[str], list[str]]:
    """Return the requirements that conda installs and those that pip installs."""
    *conda, last = yaml.safe_load(path.read_text())["dependencies"]
    return conda, last["pip"]


def pins(requirements: list[str]) -> dict[str, str]:
    """Return the pinned versions by package name."""
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in requirements)}


def own(path: Path) -> set[str]:
    """Return the packages that an environment pins to versions of its own."""
    tools = tomllib.loads(PYPROJECT.read_text())["tool"]
    return set(pins(tools.get(path.stem, {}).get("dependencies", [])))


def locked() -> dict[str, str]:
    """Return the versions that `make demo` runs with."""
    return pins([line for line in LOCK.read_text().splitlines() if not line.startswith("#")])


@each_environment
def test_versions_and_reasons_are_those_of_pyproject(path):
    conda, pip = dependencies(path)
    said = dict(re.findall(r"^ +- (\S+) # (.+)$", path.read_text(), re.MULTILINE))
    direct = dict(re.findall(r'^ +"(\S+)", *# (.+)$', PYPROJECT.read_text(), re.MULTILINE))
    assert {requirement: said.get(requirement) for requirement in [*conda, *pip]}.items() <= direct.items()


@each_environment
def test_versions_are_those_of_the_demo(path):
    here, demo = pins(dependencies(path)[1]), locked()
    shared = here.keys() & demo.keys() - own(path)
    assert len(shared) >= 6
    assert {name: here[name] for name in shared} == {name: demo[name] for name in shared}


def test_the_lock_is_small_and_holds_every_direct_pin():
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    assert pins([*project["dependencies"], *project["optional-dependencies"]["dev"]]).items() <= locked().items()
    assert [name for name in locked() if name.startswith("nvidia")] == []


@each_environment
def test_conda_reads_every_spec(path):
    for spec in dependencies(path)[0]:
        assert rattler.MatchSpec(spec, strict=True).version, f"{spec} names no version"


@each_environment
def test_pip_section_resolves_for_linux_with_the_versions_of_the_demo(path, tmp_path):
    conda, pip = dependencies(path)
    python = next(spec.removeprefix("python=") for spec in conda if spec.startswith("python="))
    constraints = tmp_path / "constraints.txt"
    # vLLM requires numpy < 2.4; Slurm's plugin, which is in the lock, requires >= 2.4.5.
    apart = own(path) | ({"numpy"} if path.stem == "vllm" else set())
    if "torch" in apart:  # the versions of these depend on torch's
        apart |= {"triton", "setuptools", "fsspec"}
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in locked().items() if name not in apart))
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--no-header", "--no-annotate"]
    command += ["--constraint", constraints]
    # --refresh ignores uv's cache and asks the index, so this fails without the index.
    command += ["--python-platform", "linux", "--python-version", python, "--refresh"]
    result = subprocess.run(command, input="\n".join(pip), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert pins(pip).items() <= pins(result.stdout.splitlines()).items()


@pytest.mark.parametrize("path", sorted((ROOT / "rules").glob("*.smk")), ids=lambda path: path.stem)
def test_environment_of_a_rule_names_what_its_program_imports(path):
    known = {"unsloth": ["unsloth"], "triton": ["torch"]}  # the lock has neither; torch for CUDA brings Triton
    packages = importlib.metadata.packages_distributions() | known
    rules = re.findall(r'code=(?:code_of\("(\w+)"\)|(\w+_code)),.*?envs/(\w+)\.yaml', path.read_text(), re.DOTALL)
    assert rules or path.stem == "common"
    for plain, chosen, environment in rules:
        program, loaded = LOADED[chosen] if chosen else (plain, [])
        named = pins(dependencies(ROOT / "envs" / f"{environment}.yaml")[1]).keys()
        imported = {packages[name][0] for name in imports(f"{ROOT}/scripts/{program}.py", loaded) if name in packages}
        missing = {canonicalize_name(name) for name in imported} - named
        assert not missing, f"{program} imports what envs/{environment}.yaml lacks"


def imports(script: str, loaded: list[str]) -> set[str]:
    """Return the top-level modules that a program, our modules in it and all that it may load import anywhere."""
    also = [rooms.file_of(room, word) for room in loaded for word in rooms.words(room)]
    paths = sources.local_modules(script, also)
    nodes = [node for path in paths for node in ast.walk(ast.parse(Path(path).read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


def with_conda(folder: Path, *arguments: str) -> str:
    """Run or plan, in a copied workflow, two rules of the data environment, which has no torch; return the output."""
    path = f"{folder.parent}/conda-shim/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    options = ["--directory", folder / "run", "--sdm", "conda", "--cores", 1, *arguments]
    result = snakemake(*options, "resources/contamination.json", workflow=folder, env=os.environ | {"PATH": path})
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def conda_run(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run, with `--sdm conda` in run/, a copy of the workflow whose programs print their Python's prefix.

    Return the folder of the copy.
    """
    folder = copy_workflow(tmp_path_factory.mktemp("conda") / "copy")
    # Snakemake does not quote the path of `activate`, and the path of a clone may contain a space
    shutil.copytree(ROOT / "tests" / "shims" / "conda-shim", folder.parent / "conda-shim")
    (folder / "scripts" / "int4_qat" / "__init__.py").write_text("import sys\n\nprint(f'python of {sys.prefix}')\n")
    write_config(small_config(untrained), folder / "config.yaml")
    with_conda(folder)
    return folder


def test_rules_run_in_the_environment_that_snakemake_made(conda_run):
    (made,) = (conda_run / "run" / ".snakemake" / "conda").glob("*/")
    for log in ("download_mmlu.log", "check_contamination.log"):
        assert f"python of {made}\n" in (conda_run / "run" / "logs" / log).read_text()


def test_an_environment_is_made_once(conda_run):
    assert "Nothing to be done" in with_conda(conda_run)


def test_a_changed_environment_is_made_anew_and_its_rules_run_again(conda_run):
    environment = conda_run / "envs" / "data.yaml"
    environment.write_text(re.sub("tqdm==.*", "tqdm==4.67.1", environment.read_text()))
    plan = with_conda(conda_run, "--dry-run")
    assert "will be created" in plan
    assert "Software environment definition has changed" in plan
    assert re.search(r"^total +3$", plan, re.MULTILINE)
