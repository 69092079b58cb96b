"""Names and descriptions of the models of flash-linear-attention (github.com/fla-org/flash-linear-attention), which its
families share.

    model.embeddings      model.layers.{i}.attn_norm, attn.*, mlp_norm, mlp.{gate,up,down}_proj      model.norm, lm_head

Of a family's own are the names within ``attn``, and what its ``config.json`` may say.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from zoo.naming import Naming
from zoo.registry import one_of

Reader = Callable[[Mapping[str, Any]], Any]
"""A field of ours, from a configuration of theirs; None where it says nothing."""


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
      channel_norm: theirs before the channel mixer.
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
      only: the values of entries that our models can have; an entry that is missing or null is as ours.
      **fields: of the family, beside the norms' epsilon, the heads and whether the head is the embedding.

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
    """Reads the value of ``key`` where it is not the ``usual`` one, which is what the mixer does by itself."""
    return lambda config: None if config.get(key) == usual else config.get(key)
