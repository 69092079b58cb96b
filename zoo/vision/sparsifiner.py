"""Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers (Wei et al., CVPR 2023,
arXiv:2303.13755).

    image -> patches -> linear -> + positions, class token -> blocks -> norm -> class token -> linear
    block: x = x + predicted(norm(x)); x = x + mlp(norm(x))        (:mod:`layers.sparse.predicted`)

A DeiT in which each patch attends to a quarter of the tokens, chosen by a low-rank prediction of its attention.
Training starts from a DeiT's weights: for 5 epochs attention is dense and the predictor is trained (``keep=1`` with the
loss "attention_reconstruction"), then for 45 it is sparse, with the dense model as teacher. Published: 48 to 69 % fewer
operations in attention at up to 0.4 % less top-1 accuracy on ImageNet-1k. The authors' additional pruning of tokens is
not included, and no weights are released. ``sparsifiner_nano_patch4_32`` is our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from layers.mixer import MixerSpec, Place
from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.naming import Each, Naming, Rearrange, Split
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class SparsifinerConfig(IsotropicConfig):
    """Hyper-parameters of Sparsifiner.

    Attributes:
      keep, tokens_per_mixture, coefficients, threshold: as in
        :class:`layers.sparse.predicted.PredictedSparseAttention`.
    """

    keep: float = 0.25
    tokens_per_mixture: int = 6
    coefficients: int = 8
    threshold: float = 0.02


class Sparsifiner(Isotropic):
    """Sparsifiner; names as in :class:`Isotropic`."""

    config: SparsifinerConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        sizes = {"keep": c.keep, "tokens_per_mixture": c.tokens_per_mixture, "coefficients": c.coefficients}
        prefix = c.class_token * (1 + c.distilled) + c.registers
        return {
            "name": "predicted_sparse_attention",
            "use_bias": c.qkv_bias,
            "out_bias": True,
            "threshold": c.threshold,
            "prefix": prefix,
            **sizes,
        }


VARIANTS: dict[str, dict[str, Any]] = {
    "sparsifiner_nano_patch4_32": {
        "image_size": 32,
        "patch_size": 4,
        "features": 64,
        "depth": 6,
        "num_heads": 4,
        "mlp_ratio": 2.0,
    },
    "sparsifiner_tiny_patch16_224": {"features": 192, "num_heads": 3},
    "sparsifiner_small_patch16_224": {"features": 384, "num_heads": 6},
    "sparsifiner_base_patch16_224": {},
}

# Of the authors' code.
PARAMETERS = {
    "sparsifiner_tiny_patch16_224": 5_918_632,
    "sparsifiner_small_patch16_224": 22_251_880,
    "sparsifiner_base_patch16_224": 86_768_872,
}

_MIXER = "blocks.{i}.mixer"
_POSITIONS = Each((Rearrange("1 n d -> n d"), Rearrange("1 (h w) d -> h w d")))
RULES = {
    "sparsifiner": Naming(
        [
            ("patch_embed.proj", "patch_embed"),
            ("cls_token", "class_token", Rearrange("1 n d -> n d")),
            ("pos_embed", ("prefix_position", "position.table"), Split(1), _POSITIONS),
            ("blocks.{i}.norm1", "blocks.{i}.mixer_norm"),
            ("blocks.{i}.attn.qkv", tuple(f"{_MIXER}.{part}" for part in ("query", "key", "value")), Split()),
            ("blocks.{i}.attn.proj", f"{_MIXER}.out"),
            ("blocks.{i}.attn.mask_predictor.proj_c_q", f"{_MIXER}.query_down"),
            ("blocks.{i}.attn.mask_predictor.proj_c_k", f"{_MIXER}.key_down"),
            ("blocks.{i}.attn.mask_predictor.proj_n", f"{_MIXER}.mixtures"),
            ("blocks.{i}.attn.mask_predictor.proj_back_n", f"{_MIXER}.basis"),
            ("blocks.{i}.norm2", "blocks.{i}.channel_norm"),
            ("blocks.{i}.mlp.fc1", "blocks.{i}.channel.up"),
            ("blocks.{i}.mlp.fc2", "blocks.{i}.channel.down"),
            ("norm", "norm"),
            ("head", "head"),
        ],
        tables=("position.table",),
    )
}

register_family(
    "sparsifiner",
    Sparsifiner,
    SparsifinerConfig,
    VARIANTS,
    our_choice=("sparsifiner_nano_patch4_32",),
    parameters=PARAMETERS,
    rules=RULES,
    paper=(222,),
)
