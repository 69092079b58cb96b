"""Functions with custom gradients that also support forward mode and higher derivatives.

``jax.custom_vjp`` does not support forward mode. Here the derivative of f along a direction dx is a primitive, linear
in dx,

    pushforward(x, residuals, dx) = f'(x) dx

and its transpose is the custom gradient. Reverse mode transposes the primitive without evaluating it. Forward mode
evaluates it, as the derivative of f's own operations. Gradients of gradients differentiate the custom gradient, as with
``jax.custom_vjp``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from primitives import operations


class Differentiable:
    """A function whose gradient is set by :meth:`define`.

    Attributes:
      function: (*static, *arrays) to a pytree of arrays; ``arrays`` are pytrees too.
      static: number of leading arguments that are hashable and not differentiated.
      name: the function's name, with its module.
      kernel: whether the function and its gradient are Pallas kernels, which can't be differentiated: forward mode and
        gradients of gradients raise NotImplementedError.
    """

    def __init__(self, function: Callable[..., Any], static: int, kernel: bool):
        functools.update_wrapper(self, function)
        self.name = f"{function.__module__}.{function.__name__}"
        self.function, self.static, self.kernel = function, static, kernel
        self.forward = self.backward = function

    def define(self, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
        """Sets the gradient.

        Args:
          forward: maps the function's arguments to (the function's result, residuals).
          backward: maps (*static, residuals, cotangents) to a tuple of the arrays' cotangents; None means zero.
        """
        self.forward, self.backward = (
            (self._refusing(forward), self._refusing(backward)) if self.kernel else (forward, backward)
        )

    def __call__(self, *arguments: Any) -> Any:
        leaves, tree = jax.tree.flatten(arguments[self.static :])
        given = _Given(self, arguments[: self.static], tree)
        operands = [jnp.asarray(x) for x in leaves]
        varying = frozenset().union(*(_varying(x) for x in operands))
        # The gradient of a value shared by all devices is a sum over devices, which the transpose of pcast computes.
        operands = [
            jax.lax.pcast(x, tuple(varying - _varying(x)), to="varying") if varying - _varying(x) else x
            for x in operands
        ]
        out = function_p.bind(*operands, given=given)
        return jax.tree.unflatten(_outputs(given, tuple(map(jax.typeof, operands)))[1], out)

    def refuse(self) -> Any:
        """Raises the error of a kernel in forward mode.

        Raises:
          NotImplementedError: always.
        """
        raise NotImplementedError(
            f"{self.name} is a Pallas kernel: it has a gradient, but neither a forward mode nor "
            'a gradient of its gradient. Trace the call inside `with pallas_kernels.dispatch.use("xla"):` '
            "to compute it in operations that have both"
        )

    def _refusing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            inner = jax.custom_jvp(lambda *arrays: function(*arguments[: self.static], *arrays))
            inner.defjvp(lambda primals, tangents: self.refuse())
            return inner(*arguments[self.static :])

        return call


def differentiable(static: int = 0, *, kernel: bool = False) -> Callable[[Callable[..., Any]], Differentiable]:
    """Decorator that makes a :class:`Differentiable`; call its ``define`` to set the gradient."""
    return functools.partial(Differentiable, static=static, kernel=kernel)


def _varying(x: Any) -> frozenset[str]:
    """Axes of the mesh over which an array inside ``jax.shard_map`` is known to vary."""
    return getattr(jax.typeof(x), "vma", frozenset())


@dataclasses.dataclass(frozen=True)
class _Given:
    """The function and its gradient on flat arrays."""

    of: Differentiable
    static: tuple[Any, ...]
    tree: Any

    def function(self, *leaves: Any) -> Any:
        return self.of.function(*self.static, *jax.tree.unflatten(self.tree, leaves))

    def forward(self, *leaves: Any) -> tuple[Any, Any]:
        return self.of.forward(*self.static, *jax.tree.unflatten(self.tree, leaves))

    def backward(self, residuals: Any, cotangents: Any) -> list[Any]:
        """The cotangents of all leaves; None means zero."""
        found = self.of.backward(*self.static, residuals, cotangents)
        flat: list[Any] = []
        for tree, cotangent in zip(self.tree.children(), found, strict=True):
            flat += [None] * tree.num_leaves if cotangent is None else tree.flatten_up_to(cotangent)
        return flat


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """A function and its gradient, mapped over axes of some arrays and the first axis of outputs and residuals."""

    of: Any
    axes: tuple[int | None, ...]

    def function(self, *leaves: Any) -> Any:
        return jax.vmap(self.of.function, in_axes=self.axes)(*leaves)

    def forward(self, *leaves: Any) -> tuple[Any, Any]:
        return jax.vmap(self.of.forward, in_axes=self.axes)(*leaves)

    def backward(self, residuals: Any, cotangents: Any) -> list[Any]:
        def placed(x: Any, axis: int | None) -> Any:
            if x is None:
                return None
            return jnp.sum(x, 0) if axis is None else jnp.moveaxis(x, 0, axis)

        return [placed(*row) for row in zip(jax.vmap(self.of.backward)(residuals, cotangents), self.axes, strict=True)]


@functools.lru_cache(maxsize=4096)
def _outputs(given: Any, arrays: tuple[Any, ...]) -> tuple[list[Any], Any, Any]:
    """The types of the outputs, their tree, and the effects, which an interpreted kernel has as it calls back to the
    host.
    """
    jaxpr, shapes = jax.make_jaxpr(given.function, return_shape=True)(*arrays)
    return jaxpr.out_avals, jax.tree.structure(shapes), jaxpr.effects


def _types(*arrays: Any, given: Any) -> tuple[list[Any], Any]:
    types, _, effects = _outputs(given, arrays)
    return types, effects


def _flat(*operands: Any, given: Any) -> list[Any]:
    return jax.tree.leaves(given.function(*operands))


def _differentiate(primals: Sequence[Any], tangents: Sequence[Any], *, given: Any) -> tuple[list[Any], list[Any]]:
    out, residuals = given.forward(*primals)
    leaves, tree = jax.tree.flatten(residuals)
    # A residual that is also an argument is not stored twice.
    places = {id(x): i for i, x in reversed(list(enumerate(primals)))}
    own = [x for x in leaves if id(x) not in places]
    numbers = iter(range(len(primals), len(primals) + len(own)))
    kept = tuple(places[id(x)] if id(x) in places else next(numbers) for x in leaves)
    moving = tuple(type(t) is not ad.Zero for t in tangents)
    directions = [t for t in tangents if type(t) is not ad.Zero]
    return jax.tree.leaves(out), pushforward_p.bind(
        *primals, *own, *directions, given=given, moving=moving, tree=tree, kept=kept
    )


function_p = Primitive("differentiable")
function_p.multiple_results = True
function_p.def_impl(_flat)
function_p.def_effectful_abstract_eval(_types)
ad.primitive_jvps[function_p] = _differentiate
mlir.register_lowering(function_p, mlir.lower_fun(_flat))
operations.count_by(function_p.name, _flat)


def _batch(operands: Sequence[Any], axes: Sequence[int | None], *, given: Any) -> tuple[list[Any], list[int]]:
    out = function_p.bind(*operands, given=_Mapped(given, tuple(axes)))
    return out, [0] * len(out)


batching.primitive_batchers[function_p] = _batch


# The pushforward's operands are the arrays, the residuals that are not among them, and the tangents of the ``moving``
# arrays. ``kept`` are the indices of all residuals among the operands, ``tree`` is their structure.


def _parts(operands: Sequence[Any], moving: tuple[bool, ...]) -> tuple[list[Any], list[Any], list[Any]]:
    """Arrays, residuals, directions."""
    count, directions = len(moving), len(operands) - sum(moving)
    return list(operands[:count]), list(operands[count:directions]), list(operands[directions:])


def _along(given: Any, moving: tuple[bool, ...], arrays: Sequence[Any], directions: Sequence[Any]) -> list[Any]:
    """f'(arrays) directions, in f's own operations."""
    function = given
    while not isinstance(function, Differentiable):
        function = function.of
    if function.kernel:
        function.refuse()

    def along(*moved: Any) -> list[Any]:
        some = iter(moved)
        return _flat(*(next(some) if moves else x for moves, x in zip(moving, arrays, strict=True)), given=given)

    return jax.jvp(along, tuple(x for moves, x in zip(moving, arrays, strict=True) if moves), tuple(directions))[1]


def _pushforward(*operands: Any, given: Any, moving: tuple[bool, ...], tree: Any, kept: tuple[int, ...]) -> list[Any]:
    arrays, _, directions = _parts(operands, moving)
    return _along(given, moving, arrays, directions)


def _pushforward_types(
    *operands: Any, given: Any, moving: tuple[bool, ...], tree: Any, kept: tuple[int, ...]
) -> list[Any]:
    return [x.to_tangent_aval() for x in _outputs(given, tuple(operands[: len(moving)]))[0]]


def _pushforward_jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[list[Any], list[Any]]:
    given, moving = params["given"], params["moving"]
    arrays, residuals, directions = _parts(primals, moving)
    d_arrays, _, d_directions = _parts(tangents, moving)
    out = pushforward_p.bind(*primals, **params)
    changes = []
    if any(type(d) is not ad.Zero for d in d_directions):
        changes.append(pushforward_p.bind(*arrays, *residuals, *map(ad.instantiate_zeros, d_directions), **params))
    turning = tuple(type(d) is not ad.Zero for d in d_arrays)
    if any(turning):

        def function(*turned: Any) -> list[Any]:
            some = iter(turned)
            return _along(
                given,
                moving,
                [next(some) if turns else x for turns, x in zip(turning, arrays, strict=True)],
                directions,
            )

        at = tuple(x for turns, x in zip(turning, arrays, strict=True) if turns)
        changes.append(jax.jvp(function, at, tuple(d for d in d_arrays if type(d) is not ad.Zero))[1])
    return out, [sum(parts[1:], parts[0]) for parts in zip(*changes, strict=True)]


def _pushforward_transpose(
    cotangents: Sequence[Any], *operands: Any, given: Any, moving: tuple[bool, ...], tree: Any, kept: tuple[int, ...]
) -> list[Any]:  # fmt: skip
    arrays, residuals, directions = _parts(operands, moving)
    structure = _outputs(given, tuple(map(jax.typeof, arrays)))[1]
    cotangents = jax.tree.unflatten(structure, map(ad.instantiate_zeros, cotangents))
    found = given.backward(jax.tree.unflatten(tree, [operands[i] for i in kept]), cotangents)
    wanted = [x for moves, x in zip(moving, found, strict=True) if moves]
    return [None] * (len(arrays) + len(residuals)) + [
        ad.Zero(d.aval) if x is None else x for x, d in zip(wanted, directions, strict=True)
    ]


def _pushforward_batch(
    operands: Sequence[Any], axes: Sequence[int | None], **params: Any
) -> tuple[list[Any], list[int]]:
    # Only forward mode reaches this: reverse mode transposes the primitive first.
    out = jax.vmap(functools.partial(_pushforward, **params), in_axes=tuple(axes))(*operands)
    return out, [0] * len(out)


pushforward_p = Primitive("pushforward")
pushforward_p.multiple_results = True
pushforward_p.def_impl(_pushforward)
pushforward_p.def_abstract_eval(_pushforward_types)
ad.primitive_jvps[pushforward_p] = _pushforward_jvp
ad.primitive_transposes[pushforward_p] = _pushforward_transpose
batching.primitive_batchers[pushforward_p] = _pushforward_batch
mlir.register_lowering(pushforward_p, mlir.lower_fun(_pushforward))
operations.count_by(pushforward_p.name, _pushforward)
