"""InLine attention: Bridging the Divide, Reconsidering Softmax and Linear Attention (Han et al., NeurIPS 2024,
arXiv:2412.06590).

    x = x + InLineAttention(norm(x));  x = x + MLP(norm(x))        in a narrow DeiT and in the first stages of Swin

In Swin it sees the whole map, in all stages but the last (tiny), but the last two (small), and in two and two blocks of
the third (base); the other blocks have Swin's windows. Published top-1 accuracy on ImageNet-1k: DeiT 74.5, 80.2, 82.3
(tiny, small at 288 pixels, base at 448), Swin 82.4, 83.6, 84.1. Parameters are those of the released code.
"""

from __future__ import annotations

from typing import Any

from zoo.vision.agent import register_hosts, swin_sizes

_MIXER = {"name": "inline"}


def _deit(features: int, num_heads: int, image_size: int) -> dict[str, Any]:
    return {"features": features, "num_heads": num_heads, "image_size": image_size, "mixer": _MIXER}


DEIT: dict[str, dict[str, Any]] = {
    "inline_deit_tiny_patch16_224": _deit(192, 6, 224),
    "inline_deit_small_patch16_288": _deit(320, 10, 288),
    "inline_deit_base_patch16_448": _deit(384, 12, 448),
}
SWIN = {
    f"inline_swin_{name}": options
    for name, options in swin_sizes(("IIIW", "IIWW", "IIMW"), lambda stage: _MIXER).items()
}
PARAMETERS = {
    "inline_deit_tiny_patch16_224": 6_477_736,
    "inline_deit_small_patch16_288": 16_734_760,
    "inline_swin_tiny_224": 29_223_544,
    "inline_swin_small_224": 49_793_296,
    "inline_swin_base_224": 88_350_120,
    "inline_swin_base_384": 88_465_320,
}

register_hosts(
    "inline",
    DEIT,
    SWIN,
    {},
    [("residual.0", "kernel_hidden"), ("residual.2", "kernel_out")],
    parameters=PARAMETERS,
    paper=(232,),
)
