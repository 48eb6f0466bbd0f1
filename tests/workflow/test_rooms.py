"""Test that the package's rooms (its subpackages) are layered: modules import only from their own room and those below.

No imports may be circular.
"""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from programs import ROOT

SCRIPTS = ROOT / "scripts"
PACKAGE = SCRIPTS / "int4_qat"
# The order is from the lowest room to the highest.
ROOMS = (
    *("system", "data", "checkpoint", "tokenizer", "quantization", "kernels", "config"),
    *("training", "engines", "evaluation", "results", "standin"),
)
OF_WORDS = {"methods", "formats", "backends", "schema"}  # second levels, whose files are named one by one
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
PROGRAMS = sorted(SCRIPTS.glob("*.py"))


def name_of(path: Path) -> str:
    """Return the dotted name of a file of scripts/."""
    return ".".join(path.relative_to(SCRIPTS).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports, anywhere in it; `from a import b` gives both a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def edges() -> dict[str, set[str]]:
    """Return, for each of our modules, which of our modules it imports."""
    ours = {name_of(path) for path in MODULES}
    return {name_of(path): imported(path) & ours for path in MODULES}


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_the_rooms_are_these():
    found = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert found == set(ROOMS)
    assert {path.parent for path in MODULES if path.parent == PACKAGE} == set()


def test_no_folder_lies_deeper_than_the_second_level():
    folders = {path.parent.relative_to(PACKAGE).parts for path in PACKAGE.rglob("*.py")}
    assert {parts[1:] for parts in folders} <= {(), *((name,) for name in OF_WORDS)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_from_its_own_room_and_those_below(path):
    module = name_of(path)
    place = ROOMS.index(room_of(module))
    above = {other for other in edges()[module] if ROOMS.index(room_of(other)) > place}
    assert above == set()


def test_no_module_imports_itself_by_way_of_others():
    TopologicalSorter(edges()).prepare()  # raises CycleError, which names the cycle


def test_every_room_is_a_package_and_says_nothing():
    folders = {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}
    assert {folder: (folder / "__init__.py").read_text() for folder in folders} == dict.fromkeys(folders, "")


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_a_program_imports_no_other(path):
    assert imported(path) & {name_of(other) for other in PROGRAMS} == set()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_no_program_and_parses_no_arguments(path):
    assert imported(path) & {"argparse", *map(name_of, PROGRAMS)} == set()


@pytest.mark.parametrize("path", [*MODULES, *PROGRAMS], ids=name_of)
def test_what_a_module_or_program_imports_of_ours_is_there(path):
    """This includes late imports that these tests do not run, for instance those for a GPU."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("int4_qat"):
            for alias in node.names:
                assert is_there(node.module, alias.name), f"{node.module} has no {alias.name}"


def is_there(module: str, name: str) -> bool:
    """Return whether one of our packages has a submodule of a name, or whether a module's source binds the name."""
    place = SCRIPTS / Path(*module.split("."))
    if place.is_dir():
        return (place / f"{name}.py").exists() or (place / name / "__init__.py").exists()
    return place.with_suffix(".py").exists() and name in bound(place.with_suffix(".py"))


def bound(path: Path) -> set[str]:
    """Return the names that a module's top-level statements may bind."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        else:
            names |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return names


def test_what_the_rules_import_loads_no_torch_transformers_or_scipy():
    """Every start of Snakemake runs these imports, which may include any method and format that a config names."""
    common = (ROOT / "rules" / "common.smk").read_text()
    imports = [line for line in common.splitlines() if line.startswith("from int4_qat")]
    assert any("workflow_config" in line for line in imports)
    program = "\n".join([*imports, LOAD_ALL_WORDS])
    variables = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    result = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "\n"), result.stderr


LOAD_ALL_WORDS = """
import sys
from int4_qat.system import rooms
for room in (rooms.METHODS, rooms.FORMATS):
    for word in rooms.words(room):
        rooms.load(room, word)
print(*sorted({"torch", "transformers", "scipy.stats"} & sys.modules.keys()))
"""
