"""What all tests share: the two tiers, what tests cost, and how programs are compiled."""

from __future__ import annotations

import functools
import gc
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from pallas_kernels import hopper
from tests.compilation import compile_quickly, share_programs
from tests.costs import Costs
from tests.devices import EightDevices

# JAX's interpreter of GPU kernels gives each warpgroup a thread of XLA's pool, which waits there for the others: with a
# pool as small as two cores make it, they would wait for ever. Read when the first array is made.
if hopper.interpreter_missing() is None:
    os.environ.setdefault("NPROC", "16")
# PyTorch's threads wait for each other by spinning, longer than they compute: read when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def collect_garbage_rarely() -> None:
    """Tracing makes millions of objects that stay: looking through them again and again takes an eighth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers")
    group.addoption("--full", action="store_true", help="run the tests marked full as well; with -m full those alone")
    group.addoption("--costs", action="store_true", help="list CPU seconds, and fail if a quick test takes too many")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Costs(config))
    collect_garbage_rarely()
    if hasattr(config, "workerinput"):
        return  # It has the environment of the process that started it.
    compile_quickly()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="mixer-zoo-compiled-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        share_programs(folder)


def shared(item: pytest.Item) -> str:
    """What a test has in common with others: a process, a case's programs, a file's fixtures.

    One worker is to run them after each other.
    """
    if "eight_devices" in getattr(item, "fixturenames", ()):
        return "eight devices"
    file = item.path.stem.removeprefix("test_")
    given = (getattr(item, "callspec", None) and item.callspec.params) or {}
    if cases := [
        getattr(given[name], "name", None) or str(given[name]) for name in ("op", "case", "family") if name in given
    ]:
        return " ".join([file, *cases])
    fixtures = item._fixtureinfo.name2fixturedefs.values() if isinstance(item, pytest.Function) else ()
    return file if any(found[-1].scope == "module" and found[-1].baseid.endswith(".py") for found in fixtures) else ""


@functools.cache
def compares(path: Path) -> bool:
    """Whether a file compares with models of other libraries, which take long to import and are no requirement."""
    return path.suffix == ".py" and "from tests.references.live import" in path.read_text()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Those files are of the full tier, or run by name."""
    named = {Path(argument.partition("::")[0]).resolve() for argument in config.args}
    ignored = compares(collection_path) and not config.getoption("--full") and collection_path.resolve() not in named
    return True if ignored else None


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups, and pytest the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if group := shared(item):
            item.add_marker(pytest.mark.xdist_group(group))
        if compares(item.path) and config.getoption("--full"):
            item.add_marker(pytest.mark.full)
    if config.getoption("--full"):
        return
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("full")])
    items[:] = [item for item in items if not item.get_closest_marker("full")]


@functools.cache
def drawn_from() -> list[tuple[np.random.Generator, dict[str, Any]]]:
    """The generators of all test modules, each with the state that the imports left it in."""
    # By their files: a test module's name has no folder in it, unlike those that test modules import.
    files = [(module, getattr(module, "__file__", None)) for module in list(sys.modules.values())]
    modules = [module for module, file in files if file and Path(file).is_relative_to(Path(__file__).parent)]
    found = {id(a): a for module in modules for a in vars(module).values() if isinstance(a, np.random.Generator)}
    return [(generator, dict(generator.bit_generator.state)) for generator in found.values()]


@pytest.hookimpl(tryfirst=True)  # before fixtures, which draw too
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test draws the same numbers, whichever ran before it in its process."""
    for generator, state in drawn_from():
        generator.bit_generator.state = state


@pytest.fixture(scope="session")
def eight_devices() -> Iterator[EightDevices]:
    """A process of eight devices that calls functions, the same for all tests."""
    process = EightDevices()
    yield process
    process.close()


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of TFDS with the embedded digits, prepared once: that imports scikit-learn, which takes long."""
    from tasks.datasets import digits

    where = str(tmp_path_factory.mktemp("tfds"))
    digits.prepare(where)
    return where


def mapped_pieces() -> float:
    """Of memory, that this process maps; unknown elsewhere than on Linux."""
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else math.inf


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """What was compiled goes with a file when there is much of it: looking for it takes a second, and compiling again
    what every file needs as much.

    A process may map 65,530 pieces of memory on Linux, a compiled program takes several, and the suite's thousands
    would reach that.
    """
    yield
    if mapped_pieces() > 3_000:  # of programs some 3 GB
        jax.clear_caches()
        gc.collect()
