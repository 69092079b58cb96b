"""EVA-02: A Visual Representation for Neon Genesis (Fang et al., 2023, arXiv:2303.11331).

    image -> patches -> linear -> + positions, class token -> blocks -> average of patches -> norm -> linear
    block: x = x + attention(norm(x)); x = x + W2 norm(silu(W1 norm(x)) * V norm(x))

A ViT whose attention also has rotary embeddings of rows and columns (of interleaved pairs, with positions measured on
the grid of pre-training at every image size) and no bias of keys, and whose MLPs are SwiGLU, with an inner norm in base
and large. Names and sizes are timm's (1.0.31); ``eva02_nano_patch4_32`` is our choice.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from flax import nnx

from layers.mixer import MixerSpec, Place
from layers.mlp import GatedMLP
from layers.norm import LayerNorm
from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.naming import Each, Naming, Rearrange, Split
from zoo.registry import freeze, register_family
from zoo.vision.releases import parse_releases


def _rotary(grid: tuple[int, int]) -> Any:
    """Options of :class:`layers.position.Rotary`; ``grid`` is that of pre-training."""
    return freeze({"interleaved": True, "grid": grid})


_ROTARY = _rotary((16, 16))


@dataclasses.dataclass(frozen=True)
class EVAConfig(IsotropicConfig):
    """Hyper-parameters of EVA-02.

    Attributes:
      mlp_norm: a norm before the last linear layer of the MLP.
    """

    patch_size: int = 14
    mlp: Any = "swiglu"
    mlp_ratio: float = 8 / 3
    mlp_norm: bool = True
    pool: Any = "average"
    norm_after_pool: bool = True
    rotary: Any = _ROTARY


class EVA(Isotropic):
    """EVA-02; names as in :class:`Isotropic`, and ``blocks.N.channel.norm``."""

    def own_mixer(self, place: Place) -> MixerSpec:
        spec: Any = super().own_mixer(place)
        return {**spec, "key_bias": False}

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        norm = functools.partial(LayerNorm, epsilon=c.norm_epsilon) if c.mlp_norm else None
        options = {"norm": norm, "use_bias": True, "dropout": c.dropout}
        return GatedMLP(c.features, int(c.features * c.mlp_ratio), **options, **place.dtypes, rngs=rngs)


TINY: dict[str, Any] = {"features": 192, "depth": 12, "num_heads": 3, "mlp_norm": False}
SMALL: dict[str, Any] = {"features": 384, "depth": 12, "num_heads": 6, "mlp_norm": False}
BASE: dict[str, Any] = {"features": 768, "depth": 12, "num_heads": 12}
LARGE: dict[str, Any] = {"features": 1024, "depth": 24, "num_heads": 16}
NANO: dict[str, Any] = {"features": 64, "depth": 6, "num_heads": 4, "rotary": _rotary((8, 8))}
VARIANTS: dict[str, dict[str, Any]] = {
    "eva02_nano_patch4_32": NANO | {"image_size": 32, "patch_size": 4},
    "eva02_tiny_patch14_224": TINY | {"num_classes": 0},
    "eva02_tiny_patch14_336": TINY | {"image_size": 336},
    "eva02_small_patch14_224": SMALL | {"num_classes": 0},
    "eva02_small_patch14_336": SMALL | {"image_size": 336},
    "eva02_base_patch14_224": BASE | {"num_classes": 0},
    "eva02_base_patch14_448": BASE | {"image_size": 448},
    "eva02_large_patch14_224": LARGE | {"num_classes": 0},
    "eva02_large_patch14_448": LARGE | {"image_size": 448},
}

_RELEASES = """
eva02_base_patch14_224: mim_in22k 0 clip 0.9 mit
eva02_base_patch14_448: mim_in22k_ft_in22k_in1k 1000 clip 1.0 squash mit; mim_in22k_ft_in1k 1000 clip 1.0 mit
eva02_base_patch14_448: mim_in22k_ft_in22k 21841 clip 1.0 squash mit
eva02_large_patch14_224: mim_in22k 0 clip 0.9 mit; mim_m38m 0 clip 0.9 mit
eva02_large_patch14_448: mim_in22k_ft_in22k_in1k 1000 clip 1.0 squash mit
eva02_large_patch14_448: mim_m38m_ft_in22k_in1k 1000 clip 1.0 squash mit
eva02_large_patch14_448: mim_in22k_ft_in1k 1000 clip 1.0 mit; mim_m38m_ft_in1k 1000 clip 1.0 mit
eva02_large_patch14_448: mim_in22k_ft_in22k 21841 clip 1.0 squash mit; mim_m38m_ft_in22k 21841 clip 1.0 squash mit
eva02_small_patch14_224: mim_in22k 0 clip 0.9 mit
eva02_small_patch14_336: mim_in22k_ft_in1k 1000 clip 1.0 mit
eva02_tiny_patch14_224: mim_in22k 0 clip 0.9 mit
eva02_tiny_patch14_336: mim_in22k_ft_in1k 1000 clip 1.0 mit
"""

_POSITIONS = Each((Rearrange("1 n d -> n d"), Rearrange("1 (h w) d -> h w d")))
_MIXER = "blocks.{i}.mixer"
_KERNELS = tuple(f"{_MIXER}.{part}.kernel" for part in ("query", "key", "value"))


def _rules(small: bool) -> dict[str, Naming]:
    """timm's names; the small ones fuse queries, keys and values, and the two halves of the MLP."""
    gate, up, block = "blocks.{i}.channel.gate", "blocks.{i}.channel.up", "blocks.{i}"
    fused = [
        (f"{block}.attn.qkv.weight", _KERNELS, Split(), Rearrange("o i -> i o")),
        (f"{block}.attn.q_bias", f"{_MIXER}.query.bias"),
        (f"{block}.attn.v_bias", f"{_MIXER}.value.bias"),
        (f"{block}.mlp.fc1", (gate, up), Split()),
    ]
    apart = [
        *[(f"{block}.attn.{part[0]}_proj", f"{_MIXER}.{part}") for part in ("query", "key", "value")],
        (f"{block}.mlp.fc1_g", gate),
        (f"{block}.mlp.fc1_x", up),
        (f"{block}.mlp.norm", f"{block}.channel.norm"),
    ]
    rules = [
        ("patch_embed.proj", "patch_embed"),
        ("cls_token", "class_token", Rearrange("1 n d -> n d")),
        ("pos_embed", ("prefix_position", "position.table"), Split(1), _POSITIONS),
        (f"{block}.norm1", f"{block}.mixer_norm"),
        *(fused if small else apart),
        (f"{block}.attn.proj", f"{_MIXER}.out"),
        (f"{block}.norm2", f"{block}.channel_norm"),
        (f"{block}.mlp.fc2", f"{block}.channel.down"),
        ("fc_norm", "pool_norm"),
        ("head", "head"),
    ]
    return {"timm": Naming(rules, tables=("position.table",))}


# Of timm 1.0.31.
PARAMETERS = {
    "eva02_base_patch14_224": 85_758_720,
    "eva02_base_patch14_448": 87_117_544,
    "eva02_large_patch14_224": 303_268_800,
    "eva02_large_patch14_448": 305_080_232,
    "eva02_small_patch14_224": 21_621_120,
    "eva02_small_patch14_336": 22_129_000,
    "eva02_tiny_patch14_224": 5_502_144,
    "eva02_tiny_patch14_336": 5_756_584,
}

for _small in (True, False):
    _variants = {name: options for name, options in VARIANTS.items() if options.get("mlp_norm", True) != _small}
    register_family(
        "eva",
        EVA,
        EVAConfig,
        _variants,
        our_choice=("eva02_nano_patch4_32",),
        parameters=PARAMETERS,
        releases=parse_releases(_RELEASES),
        rules=_rules(_small),
    )
