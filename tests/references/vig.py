"""Records outputs of the authors' ViG: ``python -m tests.references.vig CLONE`` writes vig.npz beside it.

CLONE is a checkout of github.com/hustvl/ViG (MIT). Only numbers are kept. The model is the authors' class, narrow and
shallow, with weights and images from :mod:`tests.references.seeded`; the published models' parameter counts are
recorded as well. Their kernels need a GPU: the recurrence in both directions is a loop here, and the RMS norm that adds
a residual is written out. The loop sums the directions, as in training; their kernel for evaluation halves them, and
the layer halves them again.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, SIDE = 24, 10, 80
KEPT = {"gradient": np.s_[:, ::2, 1::2]}
SIZE: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3}
COUNTED = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
KINDS = {"tiny": True, "small": False}  # with SiLU after the convolution and before the output, or without
IMAGES = dict.fromkeys(KINDS, (1, SIDE, SIDE, 3))
_NAMES = (
    "GatedLinearAttention",
    "MLP",
    "GLABlock",
    "LayerNorm2d",
    "V1PatchEmbed",
    "V2PatchEmbed",
    "ViG",
    "resize_pos_embed",
)


def authors(
    clone: Path,
    module: str = "vig",
    kind: str = "ViG",
    names: Sequence[str] = _NAMES,
    more: Mapping[str, Any] | None = None,
    kernel_halves: bool = False,
) -> Any:
    """Their class of models, of the classes and functions ``names`` of a module, with what it imports besides;
    ``kernel_halves``: the sum of both directions is halved by the kernel, not by the layer.
    """
    from einops import rearrange
    from transformers.activations import ACT2FN

    from tests.references.live import timm, torch

    class RMSNorm(torch.nn.Module):
        def __init__(self, hidden_size: int, eps: float) -> None:
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(hidden_size)), eps

        def forward(self, x: Any, residual: Any = None, prenorm: bool = False) -> Any:
            x = x if residual is None else x + residual
            y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight
            return (y, x) if prenorm else y

    def both_directions(q: Any, k: Any, v: Any, g: Any, _: Any) -> Any:
        found = []
        for gates, order in ((g[: len(q)], range(q.shape[2])), (g[len(q) :], reversed(range(q.shape[2])))):
            state, out = torch.zeros(*k.shape[:2], k.shape[3], v.shape[3]), [None] * q.shape[2]
            for t in order:
                state = gates[:, :, t, :, None].exp() * state + k[:, :, t, :, None] * v[:, :, t, None]
                out[t] = torch.einsum("bhd,bhde->bhe", q[:, :, t] * q.shape[3] ** -0.5, state)
            found.append(torch.stack(out, 2))
        return (found[0] + found[1]) / (2 if kernel_halves else 1), None

    def config(**given: Any) -> Any:
        defaults = {"rms_norm_eps": 1e-6, "clamp_min": None, "fuse_norm": True, "intermediate_size": None}
        return types.SimpleNamespace(**{**defaults, "initializer_range": 0.02, **given})

    found: dict[str, Any] = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "rearrange": rearrange}
    found |= {"ACT2FN": ACT2FN, "RMSNorm": RMSNorm, "GLAConfig": config, "bid_fused_recurrent_gla": both_directions}
    found |= {"DropPath": timm.layers.DropPath, "to_2tuple": timm.layers.to_2tuple}
    found |= {"trunc_normal_": lambda *_, **__: None, "Optional": Any, "Tuple": tuple, **(more or {})}
    tree = ast.parse((clone / f"classification/models/{module}.py").read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
    source = "from __future__ import annotations\n" + ast.unparse(tree)
    exec(compile(source, f"{module}.py", "exec"), found)
    return found[kind]


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    build = authors(clone)
    options: dict[str, Any] = {"if_cls_token": False, "patch_embed_version": "v2", "attn_model": "fused_chunk"}

    def kind(activated: bool) -> dict[str, Any]:
        return {**options, "use_out_act": activated, "use_act_in_conv": activated}

    counts = {
        name: recording.count(build(embed_dim=features, num_heads=heads, **kind(name == "tiny")))
        for name, (features, heads) in COUNTED.items()
    }
    arrays: dict[str, np.ndarray] = {}
    for name, activated in KINDS.items():
        model = build(img_size=SIDE, num_classes=CLASSES, **SIZE, **kind(activated))
        shapes = recording.give_weights(model, SEED)
        images = seeded.images(IMAGES[name], SEED)
        found = recording.outputs(model, model.blocks, images, KEPT, lambda out: out[0].detach().numpy())
        arrays |= recording.under(name, found)
    return arrays | recording.about("github.com/hustvl/ViG", clone, counts=counts, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
