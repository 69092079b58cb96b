"""Names and descriptions that the models of flash-linear-attention (github.com/fla-org/flash-linear-attention) share.

    model.embeddings      model.layers.{i}.attn_norm, attn.*, mlp_norm, mlp.{gate,up,down}_proj      model.norm, lm_head

A family adds the names within ``attn`` and the entries of its ``config.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from zoo.naming import Naming
from zoo.registry import one_of

Reader = Callable[[Mapping[str, Any]], Any]
"""Reads a field of ours from a configuration of theirs; None if it does not state the field."""


MLP = {f"mlp.{name}_proj": name for name in ("gate", "up", "down")}


def fla_names(
    mixer: Mapping[str, str],
    *more: tuple[Any, ...],
    channel_norm: str = "mlp_norm",
    channel: Mapping[str, str] = MLP,
) -> Naming:
    """The naming of a family.

    Args:
      mixer: names of the mixer's parts, theirs to ours; theirs begin after ``attn.``.
      *more: further rules (:class:`zoo.naming.Naming`).
      channel_norm: their name of the norm before the channel mixer.
      channel: names of the channel mixer's parts, theirs to ours; theirs begin after the block.
    """
    block, ours = "model.layers.{i}", "blocks.{i}"
    return Naming(
        rules=(
            ("model.embeddings", "embedding"),
            (f"{block}.attn_norm", f"{ours}.mixer_norm"),
            *((f"{block}.attn.{theirs}", f"{ours}.mixer.{name}") for theirs, name in mixer.items()),
            (f"{block}.{channel_norm}", f"{ours}.channel_norm"),
            *((f"{block}.{theirs}", f"{ours}.channel.{name}") for theirs, name in channel.items()),
            ("model.norm", "norm"),
            ("lm_head", "head"),
            *more,
        ),
        prefix="model.",
    )


def fla_described(only: Mapping[str, Collection[Any]] | None = None, **fields: Reader) -> dict[str, Reader]:
    """How the fields that weights don't show are read from a ``config.json`` (:class:`zoo.registry.Variant`).

    Args:
      only: the values of entries that our models support; a missing or null entry is taken to be ours.
      **fields: the family's own, besides the norms' epsilon, the number of heads and whether the head is tied.

    Raises (the readers):
      ValueError: the configuration has attention in some blocks, or a value that is not in ``only``.
    """
    allowed = {"hidden_act": ("swish", "silu"), **(only or {})}

    def epsilon(config: Mapping[str, Any]) -> float | None:
        if config.get("attn"):
            raise ValueError(f"attn={config['attn']!r}: make such a model with pattern={{...}}")
        for key, values in allowed.items():
            one_of(config, key, dict.fromkeys(values))
        return config.get("norm_eps")

    return {
        "norm_epsilon": epsilon,
        "num_heads": entry("num_heads"),
        "tied": entry("tie_word_embeddings"),
        **fields,
    }


def entry(key: str) -> Reader:
    """Reads the value of ``key``."""
    return lambda config: config.get(key)


def unless(key: str, usual: Any) -> Reader:
    """Reads the value of ``key`` unless it is the ``usual`` one, which is the mixer's default."""
    return lambda config: None if config.get(key) == usual else config.get(key)
