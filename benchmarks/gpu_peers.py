"""The peers of :mod:`benchmarks.gpu`: cuDNN through JAX, PyTorch's attention, flash-linear-attention, mamba-ssm and
NATTEN, each where it can be imported.

A peer is created from a problem, the JAX inputs and what is timed ("forward" or "gradient"). It returns a function that
makes the i-th call and one that waits for its result, or raises an error that says why it cannot take part.
"""

from __future__ import annotations

import concurrent.futures
import fcntl
import functools
import importlib.metadata
import math
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_problems import Problem

Contestant = tuple[Callable[[int], Any], Callable[[Any], None]]
NOT_HERE = "it does not compute this"
# Peers whose kernels Triton compiles and measures in up to 48 configurations each, a minute or more for a problem.
SLOW = frozenset({"fla"})


def versions() -> dict[str, str]:
    """Versions of the packages that the peers come from."""
    found = {}
    for name in ("torch", "triton", "flash-linear-attention", "mamba-ssm", "natten"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@functools.cache
def tune_side_by_side() -> None:
    """Makes Triton's autotuner compile its configurations in one thread per core, and measure them in one process at a
    time.

    Both results go to Triton's cache on disk. Each configuration is measured for 30 ms instead of 100.
    """
    try:
        import triton
        from triton.runtime.autotuner import Autotuner
        from triton.testing import do_bench
    except ImportError:
        return
    threads = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    turn = pathlib.Path(os.environ.get("TRITON_CACHE_DIR", tempfile.gettempdir())) / "turn"
    turn.parent.mkdir(parents=True, exist_ok=True)
    run, measure = Autotuner.run, Autotuner._bench
    compiled = set()

    def compile_and_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
        call = (id(self), *(str(getattr(given.get(name), "dtype", given.get(name))) for name in self.arg_names))
        if len(self.configs) > 1 and call not in compiled:
            compiled.add(call)
            with triton.AsyncCompileMode(
                threads, ignore_errors=True
            ):  # what does not compile is left out, as Triton does
                self.warmup(*args, **{name: x for name, x in kwargs.items() if name != "warmup"})
        return run(self, *args, **kwargs)

    def measure_alone(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._do_bench = functools.partial(do_bench, warmup=5, rep=30)
        with turn.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            return measure(self, *args, **kwargs)

    Autotuner.run, Autotuner._bench = compile_and_run, measure_alone


def cudnn(problem: Problem, inputs: list[dict[str, jax.Array]], way: str) -> Contestant:
    """jax.nn.dot_product_attention with cuDNN's kernels."""
    options: dict[str, Any] = {"is_causal": problem.options.get("causal", False), "implementation": "cudnn"}
    if "window" in problem.options:
        options["local_window_size"] = (problem.options["window"][0], 0)

    def forward(arrays: dict[str, jax.Array]) -> jax.Array:
        return jax.nn.dot_product_attention(arrays["q"], arrays["k"], arrays["v"], **options)

    def gradient(arrays: dict[str, jax.Array]) -> Any:
        out, pull = jax.vjp(forward, arrays)
        return out, pull(jnp.ones_like(out))

    run = jax.jit(forward if way == "forward" else gradient)
    return lambda i: run(inputs[i % len(inputs)]), jax.block_until_ready


def _torch_contestant(
    problem: Problem, inputs: list[Any], way: str, call: Callable[..., Any], order: str
) -> Contestant:
    """``call`` on PyTorch tensors by name; ``order`` "bhld" moves heads before length, the layout of PyTorch's own
    attention.
    """
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no GPU")

    def tensor(name: str, x: jax.Array) -> Any:
        made = torch.as_tensor(np.asarray(x.astype(jnp.float32)), device="cuda")
        if name in ("q", "k", "v"):
            made = made.to(torch.bfloat16)
            made = made.transpose(1, 2).contiguous() if order == "bhld" else made
        return made.requires_grad_(way == "gradient")

    sets = [{name: tensor(name, x) for name, x in inputs[0].items()}]
    for i in range(1, len(inputs)):
        sets.append({name: x.detach().roll(i, -1).requires_grad_(way == "gradient") for name, x in sets[0].items()})
    cotangent: list[Any] = []

    def run(i: int) -> Any:
        arrays = sets[i % len(sets)]
        if way == "forward":
            with torch.no_grad():
                return call(arrays)
        out = call(arrays)
        if not cotangent:
            cotangent.append(torch.randn_like(out))
        return torch.autograd.grad(out, list(arrays.values()), cotangent[0], allow_unused=True)

    def wait(_: Any) -> None:
        torch.cuda.synchronize()

    return run, wait


def torch_sdpa(problem: Problem, inputs: list[Any], way: str) -> Contestant:
    """torch.nn.functional.scaled_dot_product_attention with the flash kernels."""
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if "window" in problem.options:
        raise NotImplementedError(NOT_HERE)
    causal, grouped = problem.options.get("causal", False), problem.shapes["q"][1] != problem.shapes["k"][1]

    def call(x: dict[str, Any]) -> Any:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(x["q"], x["k"], x["v"], is_causal=causal, enable_gqa=grouped)

    return _torch_contestant(problem, inputs, way, call, "bhld")


def torch_flex(problem: Problem, inputs: list[Any], way: str) -> Contestant:
    """Compiled flex attention with a block mask."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if "window" not in problem.options:
        raise NotImplementedError("compiling takes long, and cuDNN is faster where all blocks are visible")
    length, heads, _ = problem.shapes["q"]
    left = problem.options["window"][0]

    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q >= k) & (q - k <= left)

    mask = create_block_mask(visible, None, None, length, length, device="cuda")
    compiled = torch.compile(flex_attention)
    grouped = heads != problem.shapes["k"][1]
    return _torch_contestant(
        problem, inputs, way, lambda x: compiled(x["q"], x["k"], x["v"], block_mask=mask, enable_gqa=grouped), "bhld"
    )


def fla_linear(problem: Problem, inputs: list[Any], way: str) -> Contestant:
    """flash-linear-attention: simple GLA for one decay per head, GLA for one decay per key feature."""
    from fla.ops.gla import chunk_gla
    from fla.ops.linear_attn import chunk_linear_attn
    from fla.ops.simple_gla import chunk_simple_gla

    def call(x: dict[str, Any]) -> Any:
        if "decay" not in x:
            return chunk_linear_attn(x["q"], x["k"], x["v"], scale=1.0, normalize=False)[0]
        if x["decay"].dim() == 4:
            return chunk_gla(x["q"], x["k"], x["v"], x["decay"], scale=1.0)[0]
        return chunk_simple_gla(x["q"], x["k"], x["v"], x["decay"], scale=1.0)[0]

    return _torch_contestant(problem, inputs, way, call, "blhd")


def fla_delta(problem: Problem, inputs: list[Any], way: str) -> Contestant:
    """flash-linear-attention: the delta rule, gated or not."""
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    scale = 1 / math.sqrt(problem.shapes["q"][-1])

    def call(x: dict[str, Any]) -> Any:
        import torch

        beta = x["beta"].to(torch.bfloat16)
        if "decay" in x:
            return chunk_gated_delta_rule(x["q"], x["k"], x["v"], x["decay"], beta, scale=scale)[0]
        return chunk_delta_rule(x["q"], x["k"], x["v"], beta, scale=scale)[0]

    return _torch_contestant(problem, inputs, way, call, "blhd")


def mamba_scan(problem: Problem, inputs: list[Any], way: str) -> Contestant:
    """mamba-ssm's CUDA kernel."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def call(x: dict[str, Any]) -> Any:
        turned = {n: x[n].transpose(1, 2).contiguous() for n in ("x", "delta", "B", "C")}
        return selective_scan_fn(turned["x"], turned["delta"], x["A"], turned["B"], turned["C"])

    return _torch_contestant(problem, inputs, way, call, "blhd")


def natten(problem: Problem, inputs: list[Any], way: str) -> Contestant:
    """NATTEN's kernels, those that it chooses for the device."""
    from natten import na1d, na2d, na3d

    run, options = (na1d, na2d, na3d)[len(problem.shapes["q"]) - 3], problem.options
    return _torch_contestant(problem, inputs, way, lambda x: run(x["q"], x["k"], x["v"], **options), "blhd")


PEERS: dict[str, dict[str, Callable[[Problem, list[Any], str], Contestant]]] = {
    "attention": {"cudnn": cudnn, "torch_sdpa": torch_sdpa, "torch_flex": torch_flex},
    "linear_attention": {"fla": fla_linear},
    "delta_rule": {"fla": fla_delta},
    "selective_scan": {"mamba_ssm": mamba_scan},
    "neighborhood_attention": {"natten": natten},
}
