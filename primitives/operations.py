"""Counts the operations of a program from its jaxpr, tracing abstractly: nothing is allocated or compiled.

XLA's own cost analysis counts a loop body once and top-k as 0; this one multiplies scan bodies by their length, takes
the most expensive branch of a conditional, counts comparisons of sorts, and raises for primitives that it can't count.
It counts the program as traced, including operations that XLA would simplify away.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

_TRIPS = "trips_"
_COMPUTED: dict[str, Callable[..., Any]] = {}
_PRODUCTS = "multiply_adds"


@dataclasses.dataclass(frozen=True)
class Operations:
    """Operation counts of a program.

    Attributes:
      flops: arithmetic of every kind, a multiply-add as 2, any elementary function as 1.
      matmul_flops: the part of ``flops`` in matrix products and convolutions (including those declared by
        :func:`multiply_adds`).
      comparisons: comparisons of sorts (n log2 n) and top-k (n log2 k).
      moved: elements written by copies that are not arithmetic: gather, scatter, slices, transposes.
      input_bytes: bytes of the arguments.
      output_bytes: bytes of the results.
    """

    flops: int = 0
    matmul_flops: int = 0
    comparisons: int = 0
    moved: int = 0
    input_bytes: int = 0
    output_bytes: int = 0

    @property
    def total(self) -> int:
        """Arithmetic, comparisons and moves together, as a single measure of cost."""
        return self.flops + self.comparisons + self.moved

    def __add__(self, other: Operations) -> Operations:
        return Operations(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def __mul__(self, times: int) -> Operations:
        return Operations(*(a * times for a in dataclasses.astuple(self)))


@contextlib.contextmanager
def trips(count: int) -> Iterator[None]:
    """Declares the maximum number of iterations of a ``while`` loop traced inside, which its jaxpr does not contain.

    ``with trips(12): lax.while_loop(...)``. Not needed for ``fori_loop`` with Python bounds, which is a scan.
    """
    with jax.named_scope(f"{_TRIPS}{count}"):
        yield


def multiply_adds() -> contextlib.AbstractContextManager[None]:
    """Declares that the arithmetic traced inside is a convolution, for example one written as shifted additions: it
    counts as ``matmul_flops``.
    """
    return jax.named_scope(_PRODUCTS)


def count_by(primitive: str, program: Callable[..., Any]) -> None:
    """Declares that a primitive computes ``program(*operands, **params)`` and is counted like it."""
    _COMPUTED[primitive] = program


def computed(equation: Any) -> Any:
    """The program, as a closed jaxpr, of a primitive declared by :func:`count_by`; None for any other."""
    if (program := _COMPUTED.get(equation.primitive.name)) is None:
        return None
    operands = (jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars)
    return jax.make_jaxpr(functools.partial(program, **equation.params))(*operands)


def count(fn: Callable[..., Any], *abstract_args: Any) -> Operations:
    """Counts the operations of ``fn(*abstract_args)``.

    Args:
      fn: any function that JAX can trace; take the gradient first to count it too.
      *abstract_args: pytrees of arrays or ``jax.ShapeDtypeStruct``.

    Raises:
      ValueError: a ``while`` loop without :func:`trips`, a Pallas call without a cost estimate, or a
        primitive that has no rule here.
    """
    closed = jax.make_jaxpr(fn)(*abstract_args)
    ends = Operations(input_bytes=sum(map(_bytes, closed.in_avals)), output_bytes=sum(map(_bytes, closed.out_avals)))
    return _walk(closed.jaxpr) + ends


def exponent(program: Callable[[int], tuple[Any, ...]], lengths: Sequence[int] = (2**16, 2**20)) -> float:
    """The growth exponent of a program's operations in length, by least squares on logarithms.

    Args:
      program: maps a length to ``(fn, *abstract_args)``, the arguments of :func:`count`.
      lengths: at least two different ones. Of three with equal ratios the middle one has no weight.

    Raises:
      ValueError: fewer than two different lengths, or for the reasons of :func:`count`.
    """
    if len(set(lengths)) < 2:
        raise ValueError(f"an exponent needs at least two different lengths, got {tuple(lengths)}")
    totals = [count(*program(length)).total for length in lengths]
    return float(np.polyfit(np.log2(lengths), [math.log2(max(t, 1)) for t in totals], 1)[0])


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _bytes(aval: Any) -> int:
    itemsize = getattr(aval.dtype, "itemsize", 0)  # 0 for key arrays and tokens
    return math.prod(getattr(aval, "shape", ())) * itemsize


def _walk(jaxpr: Any) -> Operations:
    return sum(map(_count_equation, jaxpr.eqns), Operations())


def _inner(jaxpr: Any) -> Operations:
    return _walk(jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr)


def _count_equation(equation: Any) -> Operations:
    name = equation.primitive.name
    if name in _FREE:
        return Operations()
    if name in _ELEMENTWISE:
        flops = sum(map(_size, equation.outvars))
        return Operations(flops=flops, matmul_flops=flops if _PRODUCTS in str(equation.source_info.name_stack) else 0)
    if name in _REDUCING:
        return Operations(flops=sum(_size(v) for v in equation.invars))
    if name in _MOVING:
        return Operations(moved=sum(map(_size, equation.outvars)))
    if name in _RULES:
        return _RULES[name](equation)
    if name in _CALLS:
        return _inner(
            next(equation.params[key] for key in ("call_jaxpr", "jaxpr", "fun_jaxpr", "call") if key in equation.params)
        )
    if (program := computed(equation)) is not None:
        return _inner(program)
    raise ValueError(f"operations: no rule for the primitive {name!r}; add one to primitives/operations.py")


def _dot_general(equation: Any) -> Operations:
    (contracting, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    flops = 2 * _size(equation.outvars[0]) * math.prod(shape[axis] for axis in contracting)
    return Operations(flops=flops, matmul_flops=flops)


def _convolution(equation: Any) -> Operations:
    # The kernel's shape holds the features of one group. Dilating the input inserts zeros, which cost nothing.
    kernel = equation.invars[1].aval.shape
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    flops = (
        2 * _size(equation.outvars[0]) * (math.prod(kernel) // outputs) // math.prod(equation.params["lhs_dilation"])
    )
    return Operations(flops=flops, matmul_flops=flops)


def _fft(equation: Any) -> Operations:
    # 5 n log2 n for a complex transform of n points (Cooley and Tukey), half of it where one side is real.
    points = math.prod(equation.params["fft_lengths"])
    real = any(not np.issubdtype(v.aval.dtype, np.complexfloating) for v in (equation.invars[0], equation.outvars[0]))
    widest = max(_size(equation.invars[0]), _size(equation.outvars[0]))
    return Operations(flops=int((2.5 if real else 5) * widest * math.log2(max(points, 1))))


def _sort(equation: Any) -> Operations:
    operand = equation.invars[0]
    length = operand.aval.shape[equation.params["dimension"]]
    return Operations(comparisons=_size(operand) * math.ceil(math.log2(max(length, 2))))


def _top_k(equation: Any) -> Operations:
    return Operations(
        comparisons=_size(equation.invars[0]) * max(1, math.ceil(math.log2(max(equation.params["k"], 1))))
    )


def _window(equation: Any) -> Operations:
    return Operations(flops=_size(equation.outvars[0]) * math.prod(equation.params["window_dimensions"]))


def _select_and_scatter(equation: Any) -> Operations:
    return Operations(flops=_size(equation.invars[0]) * math.prod(equation.params["window_dimensions"]))


def _scatter(equation: Any) -> Operations:
    updates = _size(equation.invars[2])
    return Operations(moved=updates, flops=0 if equation.primitive.name == "scatter" else updates)


def _update_slice(equation: Any) -> Operations:
    return Operations(moved=_size(equation.invars[1]))


def _triangular_solve(equation: Any) -> Operations:
    a, b = equation.invars
    flops = _size(b) * a.aval.shape[-1]
    return Operations(flops=flops, matmul_flops=flops)


def _cholesky(equation: Any) -> Operations:
    flops = _size(equation.invars[0]) * equation.invars[0].aval.shape[-1] // 3
    return Operations(flops=flops, matmul_flops=flops)


def scan_sizes(params: Any) -> tuple[int, int]:
    """The numbers of constant and of carried operands of a ``scan``, from the ``params`` of its equation, whose form
    differs between JAX 0.10 and 0.12.
    """
    if "ft_in" in params:
        constants, carry, _ = params["ft_in"].unpack()
        return len(constants), len(carry)
    return params["num_consts"], params["num_carry"]


def _scan(equation: Any) -> Operations:
    return _inner(equation.params["jaxpr"]) * equation.params["length"]


def _cond(equation: Any) -> Operations:
    return max(map(_inner, equation.params["branches"]), key=lambda operations: operations.total)


def _while(equation: Any) -> Operations:
    declared = re.findall(rf"{_TRIPS}(\d+)", str(equation.source_info.name_stack))
    if not declared:
        raise ValueError(
            "operations: a while loop has no known number of iterations; use a scan, or trace it inside "
            "`operations.trips(count)`"
        )
    times = int(declared[-1])
    return _inner(equation.params["body_jaxpr"]) * times + _inner(equation.params["cond_jaxpr"]) * (times + 1)


def _shard_map(equation: Any) -> Operations:
    mesh = equation.params["mesh"]
    return _inner(equation.params["jaxpr"]) * math.prod(
        mesh.shape[axis] for axis in equation.params["newly_manual_axes"]
    )


def _pallas_call(equation: Any) -> Operations:
    estimate = equation.params.get("cost_estimate")
    if estimate is None:
        name = equation.params.get("name") or equation.params.get("name_and_src_info") or equation.primitive.name
        raise ValueError(
            f"operations: the Pallas call {name} has no cost estimate; give it cost_estimate=pl.CostEstimate(...)"
        )
    return Operations(flops=int(estimate.flops + estimate.transcendentals))


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_RULES: dict[str, Callable[[Any], Operations]] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "fft": _fft,
    "sort": _sort,
    "top_k": _top_k,
    "approx_top_k": _top_k,
    "triangular_solve": _triangular_solve,
    "cholesky": _cholesky,
    "dynamic_update_slice": _update_slice,
    "select_and_scatter_add": _select_and_scatter,
    "scan": _scan,
    "cond": _cond,
    "while": _while,
    "shard_map": _shard_map,
    "pallas_call": _pallas_call,
    "core_map": _pallas_call,
    "mpmd_map": _pallas_call,
    **dict.fromkeys(
        _names("reduce_window reduce_window_sum reduce_window_max reduce_window_min select_and_gather_add"), _window
    ),
    "scatter": _scatter,
    **{f"scatter{mark}{kind}": _scatter for mark in "-_" for kind in ("add", "sub", "mul", "min", "max")},
}

_CALLS = _names(
    """jit pjit closed_call core_call core_closed_call call checkpoint remat remat2 custom_jvp_call custom_vjp_call
    custom_vjp_call_jaxpr custom_vmap_call run_state"""
)

_FREE = _names(
    """reshape broadcast_in_dim squeeze expand_dims convert_element_type bitcast_convert_type iota stop_gradient
    sharding_constraint device_put name tie stage dce_sink create_token random_wrap random_unwrap random_seed
    random_clone optimization_barrier pvary pcast reshard mesh_cast axis_index platform_index empty empty2 zeros_like
    broadcast_to pbroadcast debug_callback debug_print layout_constraint"""
)

_MOVING = _names(
    "transpose concatenate pad gather dynamic_slice slice rev copy copy_p split stack unstack ppermute all_gather "
    "all_to_all tile"
)

_REDUCING = _names(
    """reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin reduce cumsum cumprod
    cummax cummin cumlogsumexp psum pmax pmin psum_invariant psum2 psum_scatter reduce_scatter"""
)

_ELEMENTWISE = _names(
    """add add_any sub mul div rem neg sign abs max min pow integer_pow exp exp2 expm1 log log1p log2 logistic sqrt
    rsqrt cbrt square sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh erf erfc erf_inv lgamma digamma
    polygamma igamma igammac igamma_grad_a random_gamma random_gamma_grad regularized_incomplete_beta bessel_i0e
    bessel_i1e floor ceil round nextafter is_finite eq ne lt le gt ge eq_to le_to lt_to and or xor not population_count
    clz shift_left shift_right_logical shift_right_arithmetic clamp select_n real imag complex conj one_minus_square
    reduce_precision random_bits random_fold_in random_split rng_bit_generator threefry2x32 mulhi zeta"""
)
