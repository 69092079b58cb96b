"""Language models with linear-time mixers, named after their papers, all with the block of
:mod:`zoo.language.linear_attention`: Flowformer (Wu et al., 2022, arXiv:2202.06258), Cottention (Mongaras et al., 2024,
arXiv:2409.18747) and Differential Mamba (Schneider et al., 2025, arXiv:2507.06204).

    x = x + Mixer(RMSNorm(x));  x = x + SwiGLU(RMSNorm(x))

The blocks of Differential Mamba have no SwiGLU. All sizes are our choice.
"""

from __future__ import annotations

from typing import Any

from zoo.language.linear_attention import LinearAttentionConfig, LinearAttentionLM
from zoo.registry import register_family

_125M: dict[str, Any] = {"vocab_size": 50280, "features": 768, "depth": 12, "num_heads": 12, "tied": True}
_NANO: dict[str, Any] = {"features": 128, "depth": 4, "num_heads": 4, "tied": True}

VARIANTS: dict[str, dict[str, Any]] = {
    "flowformer_125m": {**_125M, "kind": "flow_attention"},
    "flowformer_nano": {**_NANO, "kind": "flow_attention"},
    "cottention_125m": {**_125M, "kind": "cosine_attention"},
    "cottention_nano": {**_NANO, "kind": "cosine_attention"},
    "differential_mamba_130m": {**_125M, "depth": 24, "mlp": None, "kind": "differential_mamba"},
    "differential_mamba_nano": {**_NANO, "mlp": None, "kind": "differential_mamba"},
}

register_family(
    "linear_attention", LinearAttentionLM, LinearAttentionConfig, VARIANTS, our_choice=tuple(VARIANTS), rules={}
)
