"""The compiled forms of a mixer's case, shared by the tests that look at one of its promises each."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers import Mixer, Tokens
from layers.making import abstract
from pallas_kernels.dispatch import use
from tests.layers.mixer_cases import FEATURES, GRID, LENGTH, PADDED, VARIOUS, MixerCase


def by_reference(function: Callable[..., Any]) -> Any:
    """Compiled with the references of all ops, in half the time: that other implementations are the same is shown by
    tests of ops, and by one of mixers."""

    def run(*args: Any) -> Any:
        with use("reference"):
            return function(*args)

    return jax.jit(run)


def _is_float(path: Any, variable: Any) -> bool:
    """Whether a variable can have a gradient: not a count or key of random numbers."""
    return jnp.issubdtype(variable.dtype, jnp.inexact)


class Compiled:
    """A mixer and its compiled forms, made once for all tests of a case.

    Attributes:
      whole: of tokens that are all real, without a mask.
      masked, masked_by_default: of tokens that may be padding, and of documents.
      gradient: of parameters and input, and the output, of tokens that may be padding, and of documents: one program
        for both, but of quick forms that look back, which have no documents there.
      half: the output in bfloat16 of tokens that are all real.
      extend: a few tokens more, of which a row may have fewer.
      extend_documents: the same where documents begin.
      gradient_in_pieces: as ``gradient``, of tokens that are all real and read in two pieces.
      stepwise: one token at a time from an empty state.
    """

    def __init__(self, case: MixerCase):
        self.mixer = case.make()
        self.causal = case.causal
        self.graphdef, self.state = nnx.split(self.mixer)
        self.grid = "sequence" not in self.mixer.layouts
        self._case = case
        self.whole = by_reference(lambda x: self.merged()(x, self.known(x)))
        self.masked = by_reference(self._masked)
        self.masked_by_default = jax.jit(self._masked)
        self._gradient = by_reference(self._slopes)
        self._gradient_by_default = jax.jit(self._slopes)
        self._given_ids = case.packs and "roles" not in self.mixer.honors and not (case.quick and case.causal)
        self.half = jax.jit(lambda x, mask: nnx.clone(self.low)(x.astype(jnp.bfloat16), self.known(x, mask)))
        self.extend = by_reference(lambda x, state, mask: self.merged().extend(x, state, mask))
        self.extend_documents = by_reference(
            lambda x, state, mask, ids: self.merged().extend(x, state, Tokens(mask, segment_ids=ids))
        )
        self.gradient_in_pieces = by_reference(self._slopes_in_pieces)
        self.stepwise = by_reference(self._stepwise)

    @property
    def one_document(self) -> np.ndarray | None:
        """Segment ids of :meth:`inputs`, where each row is a document; none for a mixer that takes none."""
        return np.zeros((2, PADDED), np.int32) if self._case.packs else None

    @functools.cached_property
    def low(self) -> Mixer:
        """The mixer that computes in bfloat16."""
        return self._case.make(dtype=jnp.bfloat16)

    def merged(self) -> Mixer:
        return nnx.merge(self.graphdef, self.state, copy=True)  # a call may move its statistics

    def known(self, x: jax.Array, mask: jax.Array | None = None, ids: jax.Array | None = None) -> Tokens:
        """The mask, segment ids, and without them, for a mixer that asks for roles, two of role 1 in each row."""
        if "roles" not in self.mixer.honors or ids is not None:
            return Tokens(mask, segment_ids=ids)
        return Tokens(
            mask, roles=jnp.broadcast_to(np.isin(np.arange(x.shape[1]), (0, 4)).astype(np.int32), x.shape[:2])
        )

    def inputs(self, seed: int = 0, batch: int = 2) -> np.ndarray:
        """Random tokens, of which :meth:`real` are the first, or a grid of them."""
        rng = np.random.default_rng(seed)
        shapes = (
            [(batch, *GRID, FEATURES)]
            if self.grid
            else [(batch, length, FEATURES) for length in (LENGTH, PADDED - LENGTH)]
        )
        return np.concatenate([rng.standard_normal(shape).astype(np.float32) for shape in shapes], axis=1)

    def real(self, seed: int = 0) -> np.ndarray:
        """The first LENGTH of the random tokens, or the grid of them."""
        return self.inputs(seed) if self.grid else self.inputs(seed)[:, :LENGTH]

    def all_real(self) -> np.ndarray:
        """The mask of :meth:`inputs` under which :meth:`real` are the real ones."""
        return np.ones((2, *GRID), bool) if self.grid else np.broadcast_to(np.arange(PADDED) < LENGTH, (2, PADDED))

    def gradient(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        mask: np.ndarray,
        ids: np.ndarray | None = None,
        *,
        by_default: bool = False,
    ) -> Any:
        """((of parameters, of x), output) of a loss whose gradient for the output depends on ``weight``; of ops as they
        are by default, or their references."""
        ids = np.zeros(mask.shape, np.int32) if ids is None and self._given_ids else ids
        run = self._gradient_by_default if by_default else self._gradient
        return run(x, weight, mask, *(() if ids is None else (ids,)))

    def forward(self, x: np.ndarray, mask: np.ndarray, ids: np.ndarray | None) -> jax.Array:
        """The output of tokens that may be padding, and of documents, by a program that other tests of the tier compile
        too."""
        if self._case.is_first and self._case.name not in VARIOUS:
            return self.masked(x, mask, ids)
        return self.gradient(x, x, mask, ids if self._given_ids else None)[1]

    def output(self, x: np.ndarray) -> np.ndarray:
        """For tokens that are all real, by the program of the gradients: to compile ``whole`` takes as long as some
        other test."""
        length = x.shape[1]
        given = x if self.grid else np.pad(x, ((0, 0), (0, PADDED - length), (0, 0)))
        return np.asarray(self.gradient(given, given, self.all_real())[1])[:, :length]

    def init_state(self, batch: int = 2, dtype: Any = jnp.float32) -> Any:
        """An empty state that can hold LENGTH tokens."""
        return jax.jit(lambda: self.merged().init_state(batch, max_length=LENGTH, dtype=dtype))()

    def _masked(self, x: jax.Array, mask: jax.Array, ids: jax.Array | None) -> jax.Array:
        return self.merged()(x, self.known(x, mask, ids))

    def _slopes(self, *args: jax.Array) -> Any:
        floats, others = nnx.split_state(self.state, _is_float, ...)

        def loss(floats: nnx.State, *args: jax.Array) -> tuple[jax.Array, jax.Array]:
            return self._loss(nnx.merge_state(floats, others), *args)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(floats, *args)

    def _loss(
        self, state: nnx.State, x: jax.Array, weight: jax.Array, mask: jax.Array, ids: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        y = nnx.merge(self.graphdef, state, copy=True)(x, self.known(x, mask, ids))
        return jnp.sum(jnp.where(mask[..., None], weight * y**2 + y, 0)), y

    def _slopes_in_pieces(self, x: jax.Array, weight: jax.Array) -> Any:
        floats, others = nnx.split_state(self.state, _is_float, ...)

        def loss(floats: nnx.State, x: jax.Array) -> jax.Array:
            mixer = nnx.merge(self.graphdef, nnx.merge_state(floats, others), copy=True)
            state, pieces = mixer.init_state(x.shape[0], max_length=LENGTH), []
            for piece in (x[:, : LENGTH // 2], x[:, LENGTH // 2 :]):
                y, state = mixer.extend(piece, state)
                pieces.append(y)
            y = jnp.concatenate(pieces, 1)
            return jnp.sum(weight * y**2 + y)

        return jax.grad(loss, argnums=(0, 1))(floats, x)

    def _stepwise(self, x: jax.Array) -> jax.Array:
        mixer = self.merged()

        def step(state: Any, token: jax.Array) -> tuple[Any, jax.Array]:
            y, state = mixer.extend(token[:, None], state)
            return state, y[:, 0]

        return jnp.swapaxes(jax.lax.scan(step, self.init_state(x.shape[0]), jnp.swapaxes(x, 0, 1))[1], 0, 1)


@functools.cache
def compiled(case: MixerCase) -> Compiled:
    """The compiled forms of a case."""
    return Compiled(case)


def abstract_program(case: MixerCase, length: int) -> tuple[Any, ...]:
    """``(fn, *abstract arguments)`` of one row of ``length`` tokens: grids are squares. Mixers made for some length are
    made for this one.
    """
    c = compiled(case)
    graphdef, state = c.graphdef, c.state
    if case.options.get("max_length") is not None:
        changed = {name: length for name in ("max_length", "longest") if name in case.options}
        graphdef, state = nnx.split(abstract(functools.partial(case.build, changed=changed)))
    side = math.isqrt(length)
    shape = (side, side) if c.grid else (length,)
    return (
        lambda state, x: nnx.merge(graphdef, state)(x, c.known(x)),
        state,
        jax.ShapeDtypeStruct((1, *shape, FEATURES), jnp.float32),
    )
