"""Gemma: Open Models Based on Gemini Research and Technology (Gemma Team, 2024, arXiv:2403.08295), and what followed.

    x = sqrt(d) word;  N x [x = x + Attention(norm(x));  x = x + GeGLU(norm(x))]

with norms ``x / rms(x) * (1 + scale)`` and the tanh form of GELU. Gemma 2 (arXiv:2408.00118) also normalizes the output
of each branch, ``x + norm(branch(norm(x)))``, caps scores and logits by tanh, and uses sliding-window attention in
every other block. Gemma 3 (arXiv:2503.19786) normalizes queries and keys in place of the caps, and uses sliding windows
in five blocks of six, whose rotary embedding has its own base. The size of ``gemma_nano`` is our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from layers.attention.multi_head import soft_cap
from layers.block import Order
from layers.mixer import MixerSpec, Place
from zoo.backbones.causal import Mlp
from zoo.language.llama import DESCRIBED as LLAMA_DESCRIBED
from zoo.language.llama import RULES as LLAMA_RULES
from zoo.language.llama import Llama, LlamaConfig, refuse_other_forms, released_names, rotary_of
from zoo.registry import Release, one_of, register_family


@dataclasses.dataclass(frozen=True)
class GemmaConfig(LlamaConfig):
    """Hyper-parameters of Gemma.

    Attributes:
      attention_cap: scaled scores s are ``cap tanh(s / cap)``; None for no cap.
      attention_scale: factor of the scores; None is head_dim ** -0.5.
      global_every: period of the blocks without a window: every ``global_every``-th block attends to all earlier
        tokens.
      local_rotary: base of the rotary embedding in the blocks with a window; None is that of the other blocks.
    """

    mlp: Mlp | None = "geglu_tanh"
    norm: str = "zero_centered_rms"
    norm_epsilon: float = 1e-6
    embedding_scale: float | Literal["sqrt"] = "sqrt"
    norm_order: Order = "sandwich"
    attention_cap: float | None = None
    attention_scale: float | None = None
    global_every: int = 2
    local_rotary: float | None = None


class Gemma(Llama):
    """Gemma; names as in :class:`Causal`."""

    config: GemmaConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        score = None if c.attention_cap is None else soft_cap(c.attention_cap)
        spec = {**super().own_mixer(place), "scale": c.attention_scale, "score": score}
        if ((place.index or 0) + 1) % c.global_every == 0:
            return {**spec, "window": None}
        return spec if c.window is None or c.local_rotary is None else {**spec, "rotary": c.local_rotary}


_GEMMA: dict[str, Any] = {"vocab_size": 256000, "head_dim": 256, "norm_order": "pre"}
_GEMMA2: dict[str, Any] = {
    "vocab_size": 256000, "head_dim": 256, "window": 4096, "attention_cap": 50.0, "logit_cap": 30.0,
    "attention_scale": 256**-0.5
}  # fmt: skip
_GEMMA3: dict[str, Any] = {
    "vocab_size": 262144, "num_heads": 4, "num_kv_heads": 1, "head_dim": 256, "attention_scale": 256**-0.5,
    "qk_norm": True, "window": 512, "global_every": 6, "rotary": 1e6, "local_rotary": 10000.0,
}  # fmt: skip

FIRST_VARIANTS: dict[str, dict[str, Any]] = {
    "gemma_2b": {**_GEMMA, "features": 2048, "depth": 18, "num_heads": 8, "num_kv_heads": 1, "hidden": 16384},
    "gemma_7b": {**_GEMMA, "features": 3072, "depth": 28, "num_heads": 16, "hidden": 24576},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "gemma_nano": {
        "features": 128, "depth": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "window": 64,
        "attention_cap": 50.0, "logit_cap": 30.0
    },
    "gemma2_2b": {**_GEMMA2, "features": 2304, "depth": 26, "num_heads": 8, "num_kv_heads": 4, "hidden": 9216},
    "gemma2_9b": {**_GEMMA2, "features": 3584, "depth": 42, "num_heads": 16, "num_kv_heads": 8, "hidden": 14336},
    "gemma2_27b": {
        **_GEMMA2, "features": 4608, "depth": 46, "num_heads": 32, "num_kv_heads": 16, "head_dim": 128, "hidden": 36864,
        "attention_scale": 144**-0.5,
    },
    "gemma3_270m": {**_GEMMA3, "features": 640, "depth": 18, "hidden": 2048},
    "gemma3_1b": {**_GEMMA3, "features": 1152, "depth": 26, "hidden": 6912},
}  # fmt: skip

_SANDWICH = {
    "input_layernorm": "mixer_norm",
    "post_attention_layernorm": "mixer_post_norm",
    "pre_feedforward_layernorm": "channel_norm",
    "post_feedforward_layernorm": "channel_post_norm",
}
RULES = {"transformers": released_names(_SANDWICH)}


def _global_every(config: Mapping[str, Any]) -> Any:
    """The period of the blocks without a window.

    Raises:
      ValueError: these blocks are not periodic.
    """
    kinds = config.get("layer_types") or ()
    period = config.get("sliding_window_pattern")
    if "full_attention" in kinds:
        period = kinds.index("full_attention") + 1
        if any((kind == "full_attention") != ((i + 1) % period == 0) for i, kind in enumerate(kinds)):
            raise ValueError(f"layer_types={kinds!r}, in which full attention is not periodic")
    return period


def _epsilon(config: Mapping[str, Any]) -> Any:
    # The first files say "gelu" in hidden_act but mean the tanh form; later ones say so in hidden_activation.
    refuse_other_forms(config, "hidden_activation", "gelu_pytorch_tanh")
    return config.get("rms_norm_eps")


def _scale(config: Mapping[str, Any]) -> Any:
    return config["query_pre_attn_scalar"] ** -0.5 if config.get("query_pre_attn_scalar") else None


def _local_rotary(config: Mapping[str, Any]) -> Any:
    local = (
        rotary_of(config, "sliding_attention") if "full_attention" in (config.get("rope_parameters") or {}) else None
    )
    return config.get("rope_local_base_freq", local)


FIRST_DESCRIBED: dict[str, Any] = {
    **{field: LLAMA_DESCRIBED[field] for field in ("num_heads", "num_kv_heads", "tied")},
    "norm_epsilon": _epsilon,
    "rotary": lambda config: rotary_of(config, "full_attention"),
}
_TYPES = {"gemma2": False, "gemma3_text": True}
DESCRIBED: dict[str, Any] = {
    **FIRST_DESCRIBED,
    "qk_norm": lambda config: one_of(config, "model_type", _TYPES),
    "window": lambda config: config.get("sliding_window"),
    "global_every": _global_every,
    "local_rotary": _local_rotary,
    "attention_scale": _scale,
    "attention_cap": lambda config: config.get("attn_logit_softcapping"),
    "logit_cap": lambda config: config.get("final_logit_softcapping"),
}

_SIZES = {
    "gemma_2b": "gemma-2b",
    "gemma_7b": "gemma-7b",
    "gemma2_2b": "gemma-2-2b",
    "gemma2_9b": "gemma-2-9b",
    "gemma2_27b": "gemma-2-27b",
}
_PRETRAINED = {"gemma3_270m": "gemma-3-270m", "gemma3_1b": "gemma-3-1b-pt"}
RELEASES = {
    name: {"google": Release(f"hf://google/{theirs}", 0, license="gemma")}
    for name, theirs in {**_SIZES, **_PRETRAINED}.items()
}

# Counted in transformers' models of the released sizes; the tied head counts once.
PARAMETERS = {
    "gemma_2b": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
}

_COMMON: dict[str, Any] = {"parameters": PARAMETERS, "releases": RELEASES}
register_family("gemma", Gemma, GemmaConfig, FIRST_VARIANTS, rules=LLAMA_RULES, described=FIRST_DESCRIBED, **_COMMON)
register_family(
    "gemma", Gemma, GemmaConfig, VARIANTS, our_choice=("gemma_nano",), rules=RULES, described=DESCRIBED, **_COMMON
)
