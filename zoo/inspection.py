"""Looking inside a model: values that its modules report while it runs, attention maps and what follows from them, and
how a mixer's outputs depend on its inputs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.attention.look_here import DirectedAttention
from layers.module import Diagnostic, collecting
from pallas_kernels import dispatch
from zoo.backbones.model import input_count

DRAWN_BY = {
    "routes": ", which zoo.draw_routes draws",
    "members": ", which zoo.draw_clusters draws",
    "connections": ", which zoo.draw_connections draws",
}
"""How each kind of reported value is drawn, as part of a message."""
STATES = ("residual", "value")
"""Reported states of tokens, which nearly all models have."""


def capture(model: nnx.Module, x: Any, name: str = "attention") -> dict[str, Any]:
    """Runs the model once more and returns what its modules sow under ``name``.

    The run is in evaluation mode and with the reference implementation of every op, which is the published equation. It
    is meant for a few examples: its memory is quadratic in the length. The model itself is unchanged.

    Args:
      model: any model or layer of the zoo, or an ``nnx.Module`` that contains some.
      x: its input, with the batch axis; of an encoder-decoder (source, target).
      name: of the sown values: "attention" is (batch, heads, queries, keys) or as the mixer says, "routes" the regions
        that bi-level routing selects, "members" the clusters of routing attention, "connections" the tokens that each
        token sees in predicted sparse attention, "value" the value heads of attention, (batch, tokens, heads,
        features), "residual" the output of each block.

    Returns:
      ``{path: value}``, for instance ``{"blocks.0.mixer.attention": ...}``.

    Raises:
      ValueError: nothing of that name is sown; what the model does sow is listed.
    """
    found = _sown(model, x, name)
    if not found:
        names = _names(model, x)
        has = f"it can capture: {', '.join(names)}" if names else "its modules report nothing"
        raise ValueError(f"the model sows nothing named {name!r}; {has}")
    return found


def attention_maps(model: nnx.Module, x: Any) -> dict[str, np.ndarray]:
    """The attention weights of every mixer that has them, recomputed by the reference implementation of its op.

    Args:
      model: any model or layer of the zoo, or an ``nnx.Module`` that contains some.
      x: its input, with the batch axis; of an encoder-decoder (source, target).

    Returns:
      ``{path of the mixer: float32 (batch, heads, queries, keys)}``, in the order of the layers. For attention in
      windows, each window is a row of the batch. If a mixer runs several times, its runs are "path#0", "path#1", ...

    Raises:
      ValueError: no mixer has attention weights; the message says what can be drawn instead.
    """
    if "attention" not in (names := _names(model, x)):
        reports = "".join(
            f'zoo.capture(model, x, "{name}") gives the {name} that it reports{DRAWN_BY.get(name, "")}; '
            for name in names
            if name not in STATES
        )
        raise ValueError(
            f"no mixer of the model has attention weights. {reports}zoo.materialize(mixer, x) shows how any mixer's "
            "outputs depend on its inputs, and zoo.draw_matrix draws it"
        )
    return by_module(_sown(model, x, "attention"))


def by_module(captured: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Values of :func:`capture`, in float32, by the path of the module that reports them, in the order of the layers.
    If a module ran several times, its runs are "path#0", "path#1", ...
    """
    found: dict[str, np.ndarray] = {}
    for path, value in captured.items():
        module = path.rpartition(".")[0]
        several = value if isinstance(value, tuple) else (value,)
        for number, one in enumerate(several):
            found[module if len(several) == 1 else f"{module}#{number}"] = np.asarray(one, np.float32)
    # The encoder, where there is one, comes before the decoder.
    order = {path: (path.startswith("decoder."), [int(n) for n in re.findall(r"\d+", path)]) for path in found}
    return {path: found[path] for path in sorted(found, key=order.__getitem__)}


def attention_rollout(maps: Mapping[str, np.ndarray], *, residual: float = 0.5) -> np.ndarray:
    """How much of each input token reaches each token through all layers: the product over layers of

        residual I + (1 - residual) mean over heads of the weights

    with rows divided by their sums (S. Abnar, W. Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020,
    arXiv:2005.00928, section 3).

    Args:
      maps: of :func:`attention_maps`.
      residual: the weight of the residual connection.

    Returns:
      float32 (batch, tokens, tokens); each row sums to 1.

    Raises:
      ValueError: layers have different tokens, as in a pyramid, in windows or after a reduction.
    """
    shapes = sorted({(weights.shape[0], *weights.shape[2:]) for weights in maps.values()})
    if len(shapes) != 1 or shapes[0][1] != shapes[0][2]:
        raise ValueError(
            f"rollout multiplies layers of the same tokens, and these have (batch, queries, keys) {shapes}: draw the "
            "maps themselves (zoo.draw_maps)"
        )
    batch, length, _ = shapes[0]
    flow = np.broadcast_to(np.eye(length, dtype=np.float32), (batch, length, length))
    for weights in maps.values():
        mixed = residual * np.eye(length, dtype=np.float32) + (1 - residual) * weights.mean(1)
        flow = mixed / mixed.sum(-1, keepdims=True) @ flow
    return flow


def attention_sinks(maps: Mapping[str, np.ndarray], *, threshold: float = 0.3) -> np.ndarray:
    """Which tokens attract attention regardless of the query: the fraction of heads, over all layers, in which a
    token's importance is above a threshold,

        importance of token k = mean over the queries i >= k of their attention weight on k

    (Gu et al., "When Attention Sink Emerges in Language Models", ICLR 2025, arXiv:2410.10781, section 3.1; the paper
    reports the first token's). Each row of weights is first divided by the sum of its absolute values, which leaves
    those of a softmax unchanged.

    Args:
      maps: of :func:`attention_maps`, of causal mixers; the result is the mean over the batch.
      threshold: epsilon, 0.3 in the paper.

    Returns:
      float32 (tokens,), from 0 to 1.

    Raises:
      ValueError: layers have different tokens, or a mixer is not causal.
    """
    shapes = sorted({weights.shape[2:] for weights in maps.values()})
    if len(shapes) != 1 or shapes[0][0] != shapes[0][1]:
        raise ValueError(f"attention sinks need the same tokens in all layers; these have (queries, keys) {shapes}")
    length = shapes[0][0]
    shares = []
    for path, weights in maps.items():
        if np.triu(weights, 1).any():
            raise ValueError(f"attention sinks need causal attention; queries of {path} see later keys")
        sizes = np.abs(weights)
        importance = (sizes / np.maximum(sizes.sum(-1, keepdims=True), 1e-30)).sum(2) / np.arange(length, 0, -1)
        shares.append((importance > threshold).mean(0))
    return np.concatenate(shares).mean(0).astype(np.float32)


def materialize(mixer: nnx.Module, x: Any) -> np.ndarray:
    """How much each output token of a mixer depends on each input token: the norms of the Jacobian's blocks.

        M[i, j] = | d y_i / d x_j |       (Frobenius)

    For a mixer that is linear in its input, this is the matrix that mixes the tokens, times the norm of its projection;
    for attention it includes the derivatives of queries and keys. It costs as many backward passes as the output has
    numbers.

    Args:
      mixer: any mixer or layer that maps tokens to tokens, or the grid of an image to one.
      x: one example, (1, length, features) or (1, height, width, features).

    Returns:
      float32 (tokens out, tokens in); tokens of grids in row-major order.

    Raises:
      ValueError: x is not one example of tokens.
    """
    x = jnp.asarray(x)
    if x.ndim not in (3, 4) or len(x) != 1:
        raise ValueError(
            f"x is one example of tokens, (1, length, features) or (1, height, width, features); got {x.shape}"
        )
    graphdef, state = nnx.split(mixer)
    return np.asarray(_jacobian_norms(graphdef, state, x))


@functools.partial(jax.jit, static_argnums=0)
def _jacobian_norms(graphdef: nnx.GraphDef, state: nnx.State, x: jax.Array) -> jax.Array:
    def forward(x: jax.Array) -> jax.Array:
        copy = nnx.merge(graphdef, state)
        copy.eval()
        y = copy(x)
        return y.reshape(-1, y.shape[-1]).astype(jnp.float32)

    with dispatch.use("reference"):
        y, back = jax.vjp(forward, x)

    def row(token: jax.Array) -> jax.Array:
        """The norms for one output token, by one backward pass for each of its features."""
        directions = jnp.zeros((y.shape[1], *y.shape), jnp.float32).at[:, token].set(jnp.eye(y.shape[1]))
        (gradients,) = jax.vmap(back)(directions)
        squares = jnp.square(gradients.astype(jnp.float32)).reshape(y.shape[1], -1, x.shape[-1])
        return jnp.sqrt(squares.sum((0, 2)))

    return jax.lax.map(row, jnp.arange(len(y)))


def dependency_trees(maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Trees of tokens, one for each layer: a token's parent is the token to which it sends most (M. Ding et al.,
    "Visual Dependency Transformers", CVPR 2023, arXiv:2304.03282).

    The root is the token that receives most from the others. If the parents chosen in this way form a cycle, it is
    broken where that costs least: the result is the tree with that root whose sum of weights is the largest (J.
    Edmonds, "Optimum Branchings", 1967).

    Args:
      maps: of :func:`attention_maps` of a model with reversed attention: what token j sends to token i, (batch, heads,
        i, j); heads are added up.

    Returns:
      ``{path: int32 (batch, tokens)}``: the parent of each token; the root is its own parent.

    Raises:
      ValueError: queries and keys are not the same tokens.
    """
    trees = {}
    for path, weights in maps.items():
        if weights.shape[2] != weights.shape[3]:
            raise ValueError(
                f"{path} has {weights.shape[2]} queries and {weights.shape[3]} keys: a tree needs one set of tokens"
            )
        sent = weights.sum(1, dtype=np.float64)
        np.einsum("bii->bi", sent)[...] = 0
        trees[path] = np.stack([_largest_tree(example, int(example.sum(1).argmax())) for example in sent])
    return trees


def _largest_tree(weights: np.ndarray, root: int) -> np.ndarray:
    """Parents (tokens,) int32 in the tree with root ``root`` that has the largest sum of ``weights`` (parent,
    child)."""
    within = np.where(np.eye(len(weights), dtype=bool), -np.inf, weights)
    parents = within.argmax(0).astype(np.int32)
    parents[root] = root
    loop = _loop(parents, root)
    if loop is None:
        return parents
    # The cycle is contracted to one token, the last one.
    rest = np.setdiff1d(np.arange(len(weights)), loop)
    leaving, entering = within[np.ix_(loop, rest)], within[np.ix_(rest, loop)] - within[parents[loop], loop]
    smaller = np.full((len(rest) + 1,) * 2, -np.inf)
    smaller[:-1, :-1], smaller[-1, :-1], smaller[:-1, -1] = within[np.ix_(rest, rest)], leaving.max(0), entering.max(1)
    above = _largest_tree(smaller, int(np.flatnonzero(rest == root)[0]))
    parents[rest] = np.append(rest, -1)[above[:-1]]
    parents[rest] = np.where(parents[rest] < 0, loop[leaving.argmax(0)], parents[rest])
    parents[loop[entering[above[-1]].argmax()]] = rest[above[-1]]
    return parents


def _loop(parents: np.ndarray, root: int) -> np.ndarray | None:
    """The tokens of a cycle of parents; None if all descend from the root."""
    ancestors = parents
    for _ in range(len(parents).bit_length()):
        ancestors = ancestors[ancestors]
    (lost,) = np.nonzero(ancestors != root)
    if not len(lost):
        return None
    loop = [int(ancestors[lost[0]])]
    while (above := int(parents[loop[-1]])) != loop[0]:
        loop.append(above)
    return np.asarray(loop)


def fields_of_view(model: nnx.Module, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """The attention weights of each head of directed attention between tokens that are all equal, which its field of
    view and its distance bias alone determine (LookHere, A. Fuller et al., arXiv:2405.13985).

    Args:
      model: any model or layer of the zoo with directed attention.
      grid: rows and columns of tokens; prefix tokens are left out.

    Returns:
      ``{path of the mixer: float32 (heads, queries, keys)}``, in the order of the layers.

    Raises:
      ValueError: no mixer has fields of view.
    """
    found = {
        ".".join(map(str, path)): np.asarray(jax.jit(functools.partial(module.views, grid))())
        for path, module in nnx.iter_modules(model)
        if isinstance(module, DirectedAttention)
    }
    if not found:
        raise ValueError("no mixer of the model has fields of view, as DirectedAttention has them")
    return dict(sorted(found.items(), key=lambda item: [int(n) for n in re.findall(r"\d+", item[0])]))


def receptive_field(model: Any, images: Any, index: int = -1) -> np.ndarray:
    """The effective receptive field: how much the middle of a map depends on each pixel (W. Luo et al.,
    arXiv:1701.04128).

    It is the absolute gradient of the sum of the middle position's features with respect to the pixel, summed over
    channels and averaged over images.

    Args:
      model: an image model with ``features(images)``.
      images: (batch, height, width, channels), preprocessed for the model: random ones, or better those of its task.
      index: of the map in ``features``.

    Returns:
      float32 (height, width).

    Raises:
      ValueError: the model has no maps.
    """
    if not hasattr(model, "features"):
        raise ValueError(
            f"{type(model).__name__} has no maps: a receptive field is that of a model with features(images)"
        )
    graphdef, state = nnx.split(model)
    return np.asarray(_pixel_gradients(graphdef, index, state, jnp.asarray(images)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pixel_gradients(graphdef: nnx.GraphDef, index: int, state: nnx.State, images: jax.Array) -> jax.Array:
    def middle(images: jax.Array) -> jax.Array:
        copy: Any = nnx.merge(graphdef, state)
        copy.eval()
        grid = copy.features(images)[index]
        return grid[:, grid.shape[1] // 2, grid.shape[2] // 2].astype(jnp.float32).sum()

    return jnp.abs(jax.grad(middle)(images).astype(jnp.float32)).sum(-1).mean(0)


def _names(model: nnx.Module, x: Any) -> list[str]:
    """What the model reports. Tracing shapes is enough: nothing is computed."""
    return sorted({path.rsplit(".", 1)[-1] for path in jax.eval_shape(lambda x: _sown(model, x, None), x)})


def _sown(model: Any, x: Any, name: str | None) -> dict[str, Any]:
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: nnx.State, x: Any) -> dict[str, Any]:
        copy = nnx.merge(graphdef, state)
        copy.eval()
        with dispatch.use("reference"), collecting(Diagnostic, name=name) as sown:
            copy(*(x if isinstance(x, tuple) else (x,)))
        return sown.named(copy)

    needed, given = input_count(model), len(x) if isinstance(x, tuple) else 1
    if needed > 1 and given < needed:
        raise ValueError(f"{type(model).__name__} is called with {' and '.join(model.inputs)}: give all, as a tuple")
    return run(state, x)
