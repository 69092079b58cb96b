"""How the programs of tests are compiled: for most of them compiling takes longer than running."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx

# XLA for CPUs as it compiles small programs in the fewest CPU seconds: as one module for LLVM, not up to 32, and
# without the library of products that it would look for places to call.
QUICKLY = {"xla_cpu_parallel_codegen_split_count": 1, "xla_cpu_use_xnnpack": False}
if jax.__version_info__ < (0, 11):
    # There were two generators of code. The one that is not the default compiles unoptimized programs in a quarter of
    # the time.
    QUICKLY |= {"xla_cpu_use_fusion_emitters": False, "xla_llvm_force_inline_before_split": False}
DEFAULTS = {
    "xla_cpu_parallel_codegen_split_count": 32,
    "xla_cpu_use_xnnpack": True,
    "xla_cpu_use_fusion_emitters": True,
    "xla_llvm_force_inline_before_split": True,
}
# ``jax.jit(compiler_options=OPTIMIZED)`` compiles a program for a CPU as it is outside of the tests.
OPTIMIZED: dict[str, Any] = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    **{flag: DEFAULTS[flag] for flag in QUICKLY},
}
# Programs that compile in less are compiled again sooner than they are read from a file.
WORTH_KEEPING = 0.1


def compile_quickly() -> None:
    """Programs are compiled without XLA's expensive optimizations, here and in processes started from here.

    They are the same functions, and run slower.
    """
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    jax.config.update("jax_disable_most_optimizations", True)
    flags = " ".join(f"--{flag}={str(value).lower()}" for flag, value in QUICKLY.items())
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"


@contextlib.contextmanager
def optimizing(level: str = "UNKNOWN") -> Iterator[None]:
    """Programs are compiled for other platforms as they are outside of the tests, or at another ``level`` of effort
    ("O0" to "O3"), which counts for TPUs.
    """
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_optimization_level", level)
    yield
    jax.config.update("jax_optimization_level", "UNKNOWN")
    jax.config.update("jax_disable_most_optimizations", True)


def share_programs(folder: str) -> None:
    """What this process or one that it starts has compiled, the others read from ``folder``."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(WORTH_KEEPING)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING)


def called(model: Any, x: Any, method: str = "__call__", **options: Any) -> Any:
    """A method of ``model`` for its input, or its inputs if they are several."""
    return getattr(model, method)(*(x if isinstance(x, tuple) else (x,)), **options)


def program(module: nnx.Module, method: str = "__call__") -> Callable[..., Any]:
    """A method of ``module`` as one program: called as it is, each operation on each shape is a program of its own."""
    graphdef, state = nnx.split(module)
    return jax.jit(lambda *args, **options: getattr(nnx.merge(graphdef, state, copy=True), method)(*args, **options))
