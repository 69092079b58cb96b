"""Extreme tokens: Active-Dormant Attention Heads, Mechanistically Demystifying Extreme-Token Phenomena in LLMs (Guo et
al., 2024, arXiv:2410.13835), and the measures of section 1.

    attention sink        queries put most of their weight on one token, often the first:     dormancy
    value-state drain     the value of that token is much smaller than those of the others:   value_drains
    residual-state peak   its residual state is much larger than those of the others:         residual_peaks

The three come together: a head with nothing to say on an input is dormant, that is, it puts its weight on a token whose
value is near zero. The same head may be active on inputs of another kind; the paper shows a head of Llama 2 that is
dormant on Wikipedia and active on GitHub. Compare :func:`dormancy` of two batches. How many heads of a model have a
sink is :func:`zoo.attention_sinks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from zoo.inspection import by_module, capture


def dormancy(maps: Mapping[str, np.ndarray], *, token: int = 0) -> dict[str, np.ndarray]:
    """The weight that each head puts on one token in each example, the mean over the queries after it. Each row of
    weights is first divided by the sum of its absolute values.

    Args:
      maps: of :func:`zoo.attention_maps`, of causal mixers.
      token: index of the token.

    Returns:
      ``{path of the mixer: float32 (batch, heads)}``, from 0 to 1: near 1 where the head is dormant.

    Raises:
      ValueError: a mixer is not causal, or no query comes after the token.
    """
    found = {}
    for path, weights in maps.items():
        if np.triu(weights, 1).any():
            raise ValueError(f"dormancy is that of causal attention; queries of {path} see later keys")
        if not 0 <= token < weights.shape[-1] - 1:
            raise ValueError(f"token={token} of {weights.shape[-1]} tokens of {path}: no query comes after it")
        sizes = np.abs(weights[..., token + 1 :, :])
        found[path] = (sizes[..., token] / np.maximum(sizes.sum(-1), 1e-30)).mean(-1)
    return found


def value_drains(model: nnx.Module, x: Any) -> dict[str, np.ndarray]:
    """The size of each token's value states, relative to those of the other tokens.

    Args:
      model: a model with attention that projects values to heads.
      x: its input, with the batch axis.

    Returns:
      ``{path of the mixer: float32 (key and value heads, tokens)}``: the norm of a token's value divided by the mean
      norm of the others, and the mean of that over the batch; 1 where values are alike, near 0 for a drained one. If a
      mixer runs several times, its runs are "path#0", "path#1", ...

    Raises:
      ValueError: no mixer reports its values, or there is one token only.
    """
    return {path: np.moveaxis(_relative(value), 0, -1) for path, value in by_module(capture(model, x, "value")).items()}


def residual_peaks(model: nnx.Module, x: Any) -> dict[str, np.ndarray]:
    """The size of each token's residual state after each block, relative to those of the other tokens.

    Args:
      model: a model of blocks on sequences.
      x: its input, with the batch axis.

    Returns:
      ``{path of the block: float32 (tokens,)}``, in the order of the blocks: the norm of a token's state divided by the
      mean norm of the others, and the mean of that over the batch; far above 1 for a peak.

    Raises:
      ValueError: no block reports its states, or there is one token only.
    """
    return {path: _relative(state) for path, state in by_module(capture(model, x, "residual")).items()}


def _relative(states: np.ndarray) -> np.ndarray:
    """(tokens, ...) for states (batch, tokens, ..., features)."""
    norms = np.linalg.norm(states, axis=-1)
    count = norms.shape[1]
    if count < 2:
        raise ValueError("a token is compared with the others of its row, and there is one token only")
    others = (norms.sum(1, keepdims=True) - norms) / (count - 1)
    return (norms / np.maximum(others, 1e-30)).mean(0)
