"""GPT-Neo: Large Scale Autoregressive Language Modeling with Mesh-Tensorflow (Black et al., 2021), and MASFormer:
Efficient Long-Range Transformers: You Need to Attend More, but Not Necessarily at Every Layer (Zhang et al., EMNLP
Findings 2023, arXiv:2310.12442), which is trained from it.

    x = word + position;  N x [x = x + Attention(LayerNorm(x));  x = x + MLP(LayerNorm(x))];  logits = LayerNorm(x) W^T

with the tanh form of GELU, biases everywhere but in the query, key and value projections, and unscaled attention
scores. Some blocks use full causal attention, the others a sliding window. GPT-Neo alternates the two, starting with
full attention, with a window of 256. MASFormer uses full attention in only a few blocks, on sequences of up to 8192
tokens: up to 75 % fewer operations at 1.3 billion parameters. Which blocks, how many of them and the window's width
were not found: ``zoo.create("gpt_neo_1.3b", max_length=8192, full_blocks=(-4, -3, -2, -1), window=1024)`` is one such
model. The nano sizes are our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from layers.mixer import MixerSpec, Place
from pallas_kernels import masks
from zoo.backbones.causal import Causal, CausalConfig, Mlp
from zoo.naming import Naming, Tie
from zoo.registry import Release, one_of, register_family


@dataclasses.dataclass(frozen=True)
class GPTNeoConfig(CausalConfig):
    """Hyper-parameters of GPT-Neo.

    Attributes:
      full_blocks: indices of the blocks with full causal attention, -1 for the last; None is every other block,
        starting with the first.
      window: tokens that a token attends to in the other blocks, itself included.
      local: whether the window moves with the token ("sliding"), or the sequence is cut into blocks of that many tokens
        ("block").
    """

    mlp: Mlp | None = "gelu_tanh"
    mlp_bias: bool = True
    norm: str = "layer"
    position: Literal["learned"] | None = "learned"
    full_blocks: tuple[int, ...] | None = None
    window: int = 256
    local: Literal["sliding", "block"] = "sliding"


class GPTNeo(Causal):
    """GPT-Neo; names as in :class:`Causal`."""

    config: GPTNeoConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        """Attention to all earlier tokens, or to a window of them.

        Raises:
          ValueError: an index in ``full_blocks`` that the model does not have, or an unknown kind of window.
        """
        c, index = self.config, place.index or 0
        full = range(0, c.depth, 2) if c.full_blocks is None else c.full_blocks
        if any(not -c.depth <= block < c.depth for block in full):
            raise ValueError(f"full_blocks={c.full_blocks}: the model has the blocks 0 to {c.depth - 1}")
        if c.local not in ("sliding", "block"):
            raise ValueError(f'local={c.local!r} is not known: "sliding" or "block"')
        spec: dict[str, Any] = {"name": "attention", "scale": 1.0, "use_bias": False, "out_bias": True}
        if index in full or index - c.depth in full:
            return spec
        return {**spec, **({"window": c.window} if c.local == "sliding" else {"visible": masks.segments(c.window)})}


_SIZES: dict[str, dict[str, Any]] = {
    "gpt_neo_125m": {"vocab_size": 50257},
    "gpt_neo_1.3b": {"vocab_size": 50257, "features": 2048, "depth": 24, "num_heads": 16},
    "gpt_neo_2.7b": {"vocab_size": 50257, "features": 2560, "depth": 32, "num_heads": 20},
}
_NANO: dict[str, Any] = {"features": 128, "depth": 4, "num_heads": 4, "max_length": 256, "window": 32}
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt_neo_nano": _NANO,
    "masformer_nano": {**_NANO, "full_blocks": (-1,)},
    **_SIZES,
}

_BLOCK = "transformer.h.{i}"
_PARTS = {
    "ln_1": "mixer_norm", "attn.attention.q_proj": "mixer.query", "attn.attention.k_proj": "mixer.key",
    "attn.attention.v_proj": "mixer.value", "attn.attention.out_proj": "mixer.out", "ln_2": "channel_norm",
    "mlp.c_fc": "channel.up", "mlp.c_proj": "channel.down",
}  # fmt: skip
RULES: dict[str, Naming] = {
    "transformers": Naming(
        [
            (("transformer.wte", "lm_head"), "embedding", Tie(written=False)),
            ("lm_head", "head"),
            ("transformer.wpe.weight", "position"),
            *((f"{_BLOCK}.{theirs}", f"blocks.{{i}}.{ours}") for theirs, ours in _PARTS.items()),
            ("transformer.ln_f", "norm"),
        ],
        prefix="transformer.",
        # Old files also hold the masks.
        ignore=(f"{_BLOCK}.attn.attention.bias", f"{_BLOCK}.attn.attention.masked_bias"),
    )
}


def _full_blocks(config: Mapping[str, Any]) -> Any:
    kinds = config.get("attention_layers")
    if kinds is None and config.get("attention_types") is not None:
        kinds = [kind for pattern, times in config["attention_types"] for kind in pattern * times]
    return None if kinds is None else tuple(i for i, kind in enumerate(kinds) if kind == "global")


DESCRIBED: dict[str, Any] = {
    "norm_epsilon": lambda config: config.get("layer_norm_epsilon"),
    "num_heads": lambda config: config.get("num_heads"),
    "window": lambda config: config.get("window_size"),
    "full_blocks": _full_blocks,
    "mlp": lambda config: one_of(
        config, "activation_function", {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
    ),
    "tied": lambda config: config.get("tie_word_embeddings"),
}

RELEASES = {
    name: {"pile": Release(f"hf://EleutherAI/{theirs}", 0, license="mit")}
    for name, theirs in zip(_SIZES, ("gpt-neo-125m", "gpt-neo-1.3B", "gpt-neo-2.7B"), strict=True)
}

# Counted in the released files; the tied head counts once.
PARAMETERS = {"gpt_neo_125m": 125_198_592, "gpt_neo_1.3b": 1_315_575_808, "gpt_neo_2.7b": 2_651_307_520}

register_family(
    "gpt_neo",
    GPTNeo,
    GPTNeoConfig,
    VARIANTS,
    our_choice=("gpt_neo_nano", "masformer_nano"),
    parameters=PARAMETERS,
    rules=RULES,
    releases=RELEASES,
    described=DESCRIBED,
    paper=(200,),
)
