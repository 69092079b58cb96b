"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import jax
import pytest

from pallas_kernels import hopper

# JAX's interpreter of GPU kernels gives each warpgroup a thread of XLA's pool, which waits there for the others: with a pool as small
# as two cores make it, they would wait for ever. Read when the first array is made.
if hopper.interpreter_missing() is None:
    os.environ.setdefault("NPROC", "16")

# Tests of many small programs, where compiling takes longer than running.
COMPILED_QUICKLY = ("benchmarks", "layers", "zoo")


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiles without XLA's dear optimisations in the folders named above; their results are the same function.

    What was compiled goes with the file that needed it: a process may map 65,530 pieces of memory on Linux, a compiled program takes
    several, and the suite's thousands would reach that.
    """
    jax.config.update("jax_disable_most_optimizations", request.path.parent.name in COMPILED_QUICKLY)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
