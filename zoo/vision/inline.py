"""InLine attention: Bridging the Divide, Reconsidering Softmax and Linear Attention (Han et al., NeurIPS 2024,
arXiv:2412.06590).

    x = x + InLineAttention(norm(x));  x = x + MLP(norm(x))    in a narrow DeiT, in the first stages of Swin and CSWin

In Swin it attends to the whole map, in all stages but the last (tiny), in the first two (small), and in these and two
blocks of the third (base); the other blocks keep Swin's windows. CSWin, whose first stages are deeper than the
original's, has it in its first two stages, where its convolution reads the input of the block before the norm.
Published top-1 accuracy on ImageNet-1k: DeiT 74.5, 80.2, 82.3 (tiny, small at 288 pixels, base at 448); Swin 82.4,
83.6, 84.1; CSWin 83.2, 83.8, 84.5. Parameters are those of the released code; the authors' README states 25, 43 and 96
M for CSWin.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from layers.attention.inline import InLineAttention
from layers.block import Branch
from layers.mixer import Place
from zoo.registry import freeze, register_family
from zoo.vision import cswin
from zoo.vision.agent import in_cswin, register_hosts, swin_sizes
from zoo.vision.cswin import CSWin, CSWinConfig

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
# In CSWin's blocks the norm belongs to the mixer.
IN_CSWIN = {"name": "inline", "enhancement": 3, "norm": "layer"}
_IN_STAGES: dict[str, Any] = {"pattern": {f"{stage}.every": IN_CSWIN for stage in range(2)}}
_DEEPER: dict[str, Any] = {**_IN_STAGES, "depths": (3, 6, 29, 2)}
_WIDER = {**_DEEPER, "features": (96, 192, 384, 768), "num_heads": (4, 8, 16, 32)}
CSWIN: dict[str, dict[str, Any]] = {
    "inline_cswin_tiny_224": {**_IN_STAGES, "depths": (2, 4, 18, 1), "drop_path": 0.2},
    "inline_cswin_small_224": {**_DEEPER, "drop_path": 0.4},
    "inline_cswin_base_224": {**_WIDER, "drop_path": 0.5},
    "inline_cswin_base_384": {**_WIDER, "drop_path": 0.7, "image_size": 384, "stripes": (1, 2, 12, None)},
    # Our choice, for two cores.
    "inline_cswin_nano": {**cswin.VARIANTS["cswin_nano"], "pattern": {"0.every": IN_CSWIN}},
}
PARAMETERS = {
    "inline_deit_tiny_patch16_224": 6_477_736,
    "inline_deit_small_patch16_288": 16_734_760,
    "inline_swin_tiny_224": 29_223_544,
    "inline_swin_small_224": 49_793_296,
    "inline_swin_base_224": 88_350_120,
    "inline_swin_base_384": 88_465_320,
    "inline_cswin_tiny_224": 20_604_520,
    "inline_cswin_small_224": 33_032_872,
    "inline_cswin_base_224": 73_413_640,
    "inline_cswin_base_384": 73_413_640,
}

_OWN: list[tuple[Any, ...]] = [("residual.0", "kernel_hidden"), ("residual.2", "kernel_out")]


class InLineCSWin(CSWin):
    """CSWin whose blocks have no norm before a mixer that has one of its own; names as in :class:`CSWin`."""

    def make_branches(self, place: Place, *, rngs: nnx.Rngs) -> dict[str, nnx.Module | Branch]:
        branches = super().make_branches(place, rngs=rngs)
        mixer = branches["mixer"]
        if isinstance(mixer, InLineAttention) and mixer.norm is not None:
            branches["mixer"] = Branch(mixer, norm=None)
        return branches


def _in_cswin() -> dict[str, Any]:
    names = in_cswin([*_OWN, ("get_v", "enhancement")])["authors"]
    norms = [(f"stage{stage + 1}.{{b}}.norm1", f"stages.{stage}.blocks.{{b}}.mixer.norm") for stage in range(4)]
    return {"authors": dataclasses.replace(names, rules=[*norms, *names.rules])}


register_hosts("inline", DEIT, SWIN, {}, _OWN, parameters=PARAMETERS, paper=(232,))
register_family(
    "inline_cswin",
    InLineCSWin,
    CSWinConfig,
    {name: {field: freeze(value) for field, value in options.items()} for name, options in CSWIN.items()},
    our_choice=("inline_cswin_nano",),
    parameters=PARAMETERS,
    rules=_in_cswin(),
    preprocess={"crop_fraction": 0.9},
    paper=(232,),
)
