"""A causal mixer as a linear system, token by token: Understanding the differences in Foundation Models (Sieber et al.,
NeurIPS 2024, arXiv:2405.15731), eq. 2.

    h_t = L_t h_{t-1} + w_t        y_t = R_t h_{t-1} + d_t

The paper writes linear attention, state space models and recurrent networks in this form, w_t = B_t u_t and R_t = C_t
L_t, and compares them by it. Here the matrices come from automatic differentiation of one step, so that no mixer needs
a derivation of its own. Where the step is not linear in the state, as in an LSTM or a memory that learns at test time,
the result is the linearization at the states that the tokens lead to.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree

from pallas_kernels import dispatch

LARGEST = 1 << 27
"""The most numbers that all transition matrices together may have: half a gigabyte in float32."""


@dataclasses.dataclass(frozen=True)
class Dynamics:
    """The linear system of a mixer on given tokens.

    Attributes:
      transition: L, float32 (tokens, size, size).
      written: w, float32 (tokens, size).
      read: R, float32 (tokens, features, size): dy_t / dh_{t-1}.
      parts: the slice of h that holds each array of the state, by name.
      linear: whether the next state is an affine function of the last one; else L is its derivative.
    """

    transition: np.ndarray
    written: np.ndarray
    read: np.ndarray
    parts: dict[str, slice]
    linear: bool

    def eigenvalues(self) -> np.ndarray:
        """Eigenvalues of each L, complex64 (tokens, size), the largest magnitude first: 1 keeps, 0 forgets, -1
        alternates."""
        values = np.linalg.eigvals(self.transition.astype(np.float64))
        order = np.argsort(-np.abs(values), axis=-1, kind="stable")
        return np.take_along_axis(values, order, axis=-1).astype(np.complex64)

    def influence(self) -> np.ndarray:
        """How much of what one token wrote a later token reads, float32 (tokens, tokens): the norm of R_t L_{t-1} ...
        L_{s+1} w_s, with the reader t as row and the writer s as column.
        """
        tokens, size = self.written.shape
        found, kept = np.zeros((tokens, tokens), np.float32), np.zeros((size, 0))
        for t in range(tokens):
            found[t, :t] = np.linalg.norm(self.read[t] @ kept, axis=0)
            kept = np.concatenate([self.transition[t] @ kept, self.written[t][:, None]], axis=1)
        return found


def dynamics(mixer: nnx.Module, x: Any, part: str | None = None) -> Dynamics:
    """The linear system that a causal mixer implements on the tokens ``x``.

    It costs one backward pass per token for each number of the state and each feature.

    Args:
      mixer: a causal mixer of sequences; run in evaluation mode with the reference implementation of each op.
      x: one example, (1, length, features).
      part: the state's array to use as h, such as "memory"; the others take the values that the tokens lead to. None:
        all arrays, including those of short convolutions and of caches.

    Raises:
      ValueError: x is not one example, the part is unknown, the state is too large, or the mixer keeps no state.
    """
    x = jnp.asarray(x)
    if x.ndim != 3 or len(x) != 1:
        raise ValueError(f"x is one example of tokens, (1, length, features); got {x.shape}")
    if not hasattr(mixer, "init_state") or not getattr(mixer, "causal", False):
        raise ValueError(f"{type(mixer).__name__} keeps no state: dynamics takes a mixer made with causal=True")
    graphdef, variables = nnx.split(mixer)
    empty = jax.eval_shape(lambda: nnx.merge(graphdef, variables).init_state(1, max_length=x.shape[1]))
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree_util.tree_leaves_with_path(empty)
    ]
    kinds = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(empty)]
    known = [name for name, is_number in zip(names, kinds, strict=True) if is_number]
    if part is not None and part not in known:
        raise ValueError(f"the state has no {part!r}: it has {', '.join(known)}")
    moving = tuple(is_number and part in (None, name) for name, is_number in zip(names, kinds, strict=True))
    parts, size = {}, 0
    for name, leaf, moves in zip(names, jax.tree.leaves(empty), moving, strict=True):
        if moves:
            numbers = leaf.size * (2 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 1)
            parts[name], size = slice(size, size + numbers), size + numbers
    if size**2 * x.shape[1] > LARGEST:
        raise ValueError(
            f"the state has {size:,} numbers, and {x.shape[1]} matrices of that many rows and columns are too large: "
            f"name a part of {', '.join(known)}, or look at a narrower mixer or at fewer tokens"
        )
    transition, written, read, linear = jax.device_get(_steps(graphdef, moving, variables, x))
    return Dynamics(transition, written, read, parts, bool(linear))


def _real(a: jax.Array) -> jax.Array:
    """Complex numbers as pairs of real ones."""
    return jnp.stack([a.real, a.imag], axis=-1) if jnp.iscomplexobj(a) else a


@functools.partial(jax.jit, static_argnums=(0, 1))
def _steps(graphdef: nnx.GraphDef, moving: tuple[bool, ...], variables: nnx.State, x: jax.Array) -> tuple[Any, ...]:
    mixer: Any = nnx.merge(graphdef, variables)
    mixer.eval()
    leaves, structure = jax.tree.flatten(mixer.init_state(1, max_length=x.shape[1]))

    def parted(leaves: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        """The leaves that h holds, as real numbers, and the others."""
        pairs = list(zip(leaves, moving, strict=True))
        return [_real(leaf) for leaf, moves in pairs if moves], [leaf for leaf, moves in pairs if not moves]

    held, others = parted(leaves)
    first, unravel = ravel_pytree(held)

    def whole(h: jax.Array, others: list[jax.Array]) -> Any:
        numbers, rest = iter(unravel(h)), iter(others)
        found = []
        for leaf, moves in zip(leaves, moving, strict=True):
            value = next(numbers) if moves else next(rest)
            is_pair = moves and jnp.iscomplexobj(leaf)
            found.append(jax.lax.complex(value[..., 0], value[..., 1]) if is_pair else value)
        return jax.tree.unflatten(structure, found)

    def step(carry: tuple[jax.Array, list[jax.Array]], token: jax.Array) -> tuple[Any, tuple[jax.Array, ...]]:
        h, others = carry

        def after(h: jax.Array) -> tuple[tuple[jax.Array, jax.Array], list[jax.Array]]:
            y, new = mixer.extend(token[None, None], whole(h, others))
            held, left = parted(jax.tree.leaves(new))
            return (y[0, 0].astype(jnp.float32), ravel_pytree(held)[0]), left

        (read, transition), _ = jax.jacrev(after, has_aux=True)(h)
        (_, new), left = after(h)
        elsewhere = h + 1 + jnp.sin(jnp.arange(h.size))
        there = after(elsewhere)[0][1]
        error = jnp.abs(there - new - transition @ (elsewhere - h)).max()
        scale = jnp.abs(there).max() + jnp.abs(new).max() + 1e-6
        return (new, left), (transition, new - transition @ h, read, error <= 1e-4 * scale)

    with dispatch.use("reference"):
        *found, linear = jax.lax.scan(step, (first, others), x[0])[1]
    return (*found, jnp.all(linear))
