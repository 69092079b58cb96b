"""The rules of the house: floors, names, sizes of files, docstrings, lint."""

from __future__ import annotations

import ast
import collections
import importlib
import inspect
import pkgutil
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from flax import nnx

ROOT = Path(__file__).parents[2]
# Which of our packages each package may import, itself aside.
FLOORS: dict[str, set[str]] = {
    "primitives": set(),
    "pallas_kernels": {"primitives"},
    "layers": {"pallas_kernels", "primitives", "suggestions"},
    "pictures": set(),
    "suggestions": set(),
    "tokenization": set(),
    "zoo": {"layers", "pallas_kernels", "primitives", "pictures", "suggestions", "tokenization"},
    "tasks": {"pictures", "suggestions", "tokenization"},
    "training": {"zoo", "layers", "pallas_kernels", "primitives", "pictures", "suggestions", "tasks", "tokenization"},
}
OURS = {*FLOORS, "configs", "benchmarks", "train", "eval", "tests"}
PACKAGES = tuple(FLOORS)
VAGUE = {"utils", "util", "helpers", "helper", "misc", "common_utils", "tools", "stuff"}
LONGEST = 600  # of at most 120 columns
SOURCES = sorted(
    p for folder in (*PACKAGES, "configs", "benchmarks", "tests") for p in (ROOT / folder).rglob("*.py")
) + sorted(ROOT.glob("*.py"))


def imported(path: Path) -> set[str]:
    """Our packages that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.split(".")[0] in OURS}


def modules() -> Iterator[ModuleType]:
    for package in PACKAGES:
        root = importlib.import_module(package)
        yield root
        for found in pkgutil.walk_packages(root.__path__, f"{package}."):
            if not found.name.endswith("__main__"):
                yield importlib.import_module(found.name)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    allowed = FLOORS[package] | {package}
    wrong = {
        str(p.relative_to(ROOT)): bad
        for p in (ROOT / package).rglob("*.py")
        if (bad := {n.split(".")[0] for n in imported(p)} - allowed)
    }
    assert wrong == {}


def test_configs_hold_data_and_nobody_imports_them() -> None:
    allowed = ("configs", "configs.common", "suggestions")

    def stray(path: Path) -> set[str]:
        return {name for name in imported(path) if name not in allowed and name.rpartition(".")[0] not in allowed[1:]}

    wrong = {path.name: bad for path in (ROOT / "configs").glob("*.py") if (bad := stray(path))}
    assert wrong == {}
    importing = [
        str(p.relative_to(ROOT))
        for package in PACKAGES
        for p in (ROOT / package).rglob("*.py")
        if any(n.startswith("configs") for n in imported(p))
    ]
    assert importing == []


def test_no_two_modules_share_a_name() -> None:
    places = collections.defaultdict(set)
    for module in modules():
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, nnx.Module) and cls.__module__.split(".")[0] in ("layers", "zoo"):
                places[cls.__name__].add(cls.__module__)
    assert places
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_files_are_short() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in SOURCES}
    assert {name: count for name, count in lengths.items() if count > LONGEST} == {}


def test_names_of_test_files_are_unique() -> None:
    """pytest imports them by their names alone."""
    names = collections.Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_names_say_something() -> None:
    assert [
        str(p.relative_to(ROOT))
        for p in SOURCES
        if p.stem in VAGUE or p.stem.endswith(("_utils", "_helpers", "_v2", "_new", "_legacy"))
    ] == []


def test_whatever_is_public_has_a_docstring() -> None:
    bare = set()
    for module in modules():
        if Path(module.__file__ or "").read_text().strip() and not module.__doc__:
            bare.add(module.__name__)
        for name, thing in vars(module).items():
            if (
                name.startswith("_")
                or not (inspect.isclass(thing) or inspect.isfunction(thing))
                or thing.__module__ != module.__name__
            ):
                continue
            if not (vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__):
                bare.add(f"{module.__name__}.{name}")
    assert sorted(bare) == []


def test_every_package_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["tool"]["setuptools"]["packages"]["find"]["include"]) == {f"{package}*" for package in PACKAGES}
    hollow = {
        str(p.parent.relative_to(ROOT))
        for package in PACKAGES
        for p in (ROOT / package).rglob("*.py")
        if not (p.parent / "__init__.py").exists()
    }
    assert hollow == set()


@pytest.mark.skipif(shutil.which("ruff") is None, reason="ruff is not installed")
def test_lint() -> None:
    found = subprocess.run(["ruff", "check", "--no-cache", "."], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
