"""What all tests share: the two tiers, what tests cost, and how programs are compiled."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import jax
import pytest

from pallas_kernels import hopper
from tests.costs import Costs

# JAX's interpreter of GPU kernels gives each warpgroup a thread of XLA's pool, which waits there for the others: with a pool as small
# as two cores make it, they would wait for ever. Read when the first array is made.
if hopper.interpreter_missing() is None:
    os.environ.setdefault("NPROC", "16")

# Of XLA's two generators of code for CPUs, the one that compiles small programs in a quarter of the time, where there is a choice.
if jax.__version_info__ < (0, 11):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"

# Tests of many small programs, where compiling takes longer than running.
COMPILED_QUICKLY = ("benchmarks", "layers", "zoo")
# Programs that compile in less are compiled again sooner than they are read from a file.
WORTH_KEEPING = 0.1


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers")
    group.addoption("--full", action="store_true", help="run the tests marked full as well; with -m full those alone")
    group.addoption("--costs", action="store_true", help="list CPU seconds, and fail if a quick test takes too many")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Costs(config))
    if not hasattr(config, "workerinput") and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        # What one process of this run compiles, the others read: the workers and the processes that tests start. Gone with the run.
        folder = tempfile.mkdtemp(prefix="mixer-zoo-compiled-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(WORTH_KEEPING)
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    full = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=full)
    items[:] = [item for item in items if item not in set(full)]


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiles without XLA's expensive optimizations in the folders named above; their results are the same function.

    What was compiled goes with the file that needed it: a process may map 65,530 pieces of memory on Linux, a compiled program takes
    several, and the suite's thousands would reach that.
    """
    jax.config.update("jax_disable_most_optimizations", request.path.parent.name in COMPILED_QUICKLY)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
