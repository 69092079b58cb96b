"""Families that are compared with timm: a row each, and timm's model and ours made narrow and shallow from it.

``tests/zoo/test_timm_models.py`` compares them; what only one family has is in a file of its own beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import numpy as np

import zoo
from tests.references.live import randomize, timm, torch
from zoo.registry import variant

Options = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """What is compared of a family.

    Attributes:
      module: of timm, that has its ``default_cfgs`` and ``checkpoint_filter_fn``.
      variants: how the names of the published ones begin in ours.
      small: by variant, options of timm's model and of ours that make both narrow and shallow.
      images: (batch, height, width, channels) for these.
      maps: of timm, ours: indices of the features that are compared; None are those of all stages.
      tolerance: of the largest relative difference.
      make: timm's small model, from the name and the options.
      finish: changes the random weights of timm's model.
      published: a variant compared at its published width and size of image, options of timm's and ours that leave few
        blocks of it.
      authors: by variant, naming of the authors' files, which timm's converter reads.
      listed: pattern of the names of all timm's models of the family; None where ours has not all.
      family: of ours, where names do not tell.
      reference: timm's name of a variant of ours.
      row: name of a variant in the table of comparisons.
    """

    module: str
    variants: tuple[str, ...]
    small: Mapping[str, tuple[Options, Options]]
    images: tuple[int, ...]
    maps: Callable[[str], dict[str, Any]] = lambda name: {}
    tolerance: float = 5e-6
    make: Callable[..., Any] = timm.create_model
    finish: Callable[[Any], object] = lambda model: None
    published: tuple[str, Options, Options] | None = None
    authors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    listed: str | None = None
    family: str | None = None
    reference: Callable[[str], str] = lambda name: name
    row: Callable[[str], str] = lambda name: name

    def names(self) -> list[str]:
        """Ours that are published and in timm."""
        found = [name for name in zoo.list_models() if name.startswith(self.variants) and variant(name).published]
        wanted = self.family
        return [
            name
            for name in found
            if (wanted is None or variant(name).family == wanted) and "timm" in variant(name).rules
        ]


def pair(
    name: str, theirs: Options | None = None, ours: Options | None = None, *, seed: int = 0
) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """timm's model and ours, small, and timm's random weights; further options of either replace those of the row."""
    family = next(family for family in FAMILIES.values() if name in family.small)
    of_timm, of_ours = family.small[name]
    reference = family.make(family.reference(name), num_classes=10, **{**of_timm, **(theirs or {})})
    randomize(reference, seed)
    family.finish(reference)
    state = {key: value.numpy().copy() for key, value in reference.state_dict().items()}
    model: Any = zoo.create(name, num_classes=10, **{**of_ours, **(ours or {})})
    model.eval()
    return reference, model, state


def _same(timm_of_ours: Mapping[str, str], options: Options, **more: Any) -> tuple[Options, Options]:
    """Options of ours and the same under timm's names."""
    return {timm_of_ours.get(name, name): value for name, value in options.items()}, {**options, **more}


def _stages(depth: int, name: str = "depths") -> tuple[Options, Options]:
    return {name: (depth,) * 4}, {"depths": (depth,) * 4}


_WIDTHS = (8, 16, 24, 32)
_BOTTLENECKS = tuple(4 * width for width in _WIDTHS)
_CONVNEXT = {"dims": _WIDTHS, "depths": (1, 2, 1, 1)}, {"features": _WIDTHS, "depths": (1, 2, 1, 1)}
_SWIN: tuple[Options, Options] = (
    {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "img_size": 32},
    {"features": (16, 32), "depths": (2, 2), "num_heads": (2, 4), "window": 4, "image_size": 32},
)
_MAMBAOUT = {"dims": (16, 24), "depths": (1, 1)}, {"features": (16, 24), "depths": (1, 1), "num_heads": (1, 1)}
_FOCAL = {"features": (16, 32), "depths": (1, 1), "num_heads": (1, 1)}
_PVT = _same(
    {"features": "embed_dims"},
    {"features": (8, 16, 24), "depths": (1, 2, 1), "num_heads": (1, 2, 3), "mlp_ratios": (2.0, 2.0, 2.0)},
)


def _resnet(theirs: Options, **ours: Any) -> tuple[Options, Options]:
    depths = (1, 2, 1, 1)
    return {"channels": _WIDTHS, "layers": depths, **theirs}, {"features": _BOTTLENECKS, "depths": depths, **ours}


def _focalnet(name: str, **options: Any) -> Any:
    """timm's functions of these models take no other sizes."""
    return timm.models.focalnet.FocalNet(**options)


def _at_its_limit(model: Any) -> None:
    """One scale of the scores."""
    with torch.no_grad():
        model.layers[0].blocks[1].attn.logit_scale += 6


# By what HaloNet's widths are divided, and the blocks of each stage that are left.
_HALONETS: dict[str, tuple[int, tuple[int, ...]]] = {
    "halonet26t": (8, (1, 1, 2, 1)),
    "halonet50ts": (8, (1, 4, 2, 2)),
    "sehalonet33ts": (8, (1, 3, 3, 1)),
    "eca_halonext26ts": (4, (1, 1, 2, 1)),
    "halonet_h1": (4, (1, 1, 1, 1)),
}


def _halonet(name: str, num_classes: int) -> Any:
    """timm's model of blocks of 4x4 tokens."""
    scale, depths = _HALONETS[name]
    whole = timm.models.byoanet.model_cfgs[name]
    stages = []
    for stage, depth in zip(whole.blocks, depths, strict=True):
        for part in (kept := timm.models.byobnet.expand_blocks_cfg(stage)[:depth]):
            part.c //= scale
            part.self_attn_kwargs = part.self_attn_kwargs and {**part.self_attn_kwargs, "block_size": 4}
        stages.append(tuple(kept))
    attention = {**whole.self_attn_kwargs, "block_size": 4}
    sizes = {"stem_chs": whole.stem_chs // scale, "num_features": whole.num_features // scale}
    config = dataclasses.replace(whole, blocks=tuple(stages), self_attn_kwargs=attention, **sizes)
    return timm.models.byobnet.ByobNet(config, num_classes=num_classes)


def _ours_of_halonet(name: str) -> dict[str, Any]:
    scale, depths = _HALONETS[name]
    config: Any = variant(name).config
    widths = {part: tuple(width // scale for width in getattr(config, part)) for part in ("features", "widths", "stem")}
    options: dict[str, Any] = {**widths, "depths": depths, "window": 4}
    options["final"] = None if config.final is None else config.final // scale
    if isinstance(config.gate, tuple):  # timm rounds the hidden features to multiples of 8
        options["gate"] = [{"name": "squeeze_excite", "hidden": 8}] * 4
    return options


def _maps_of_halonet(name: str) -> dict[str, Any]:
    """timm has the last convolution in the last map."""
    stages = range(3 if variant(name).config.final else 4)  # type: ignore[attr-defined]
    return {"indices": [1 + stage for stage in stages], "blocks": stages}


def _mlp(name: str, **options: Any) -> Any:
    """timm's functions of these models take no other sizes."""
    module = timm.models.mlp_mixer
    make = lambda variant, pretrained, **own: module.MlpMixer(**{**own, **options})  # noqa: E731
    with mock.patch.object(module, "_create_mixer", make):
        return getattr(module, name)()


def _mlps(name: str, start: str, tolerance: float, authors: Mapping[str, str] | None = None) -> Family:
    """A family of timm's ``mlp_mixer``: maps of 3x3 tokens."""
    sizes: dict[str, Any] = {"patch_size": 16, "image_size": 48, "features": 32, "depth": 2}
    theirs = {"img_size": 48, "embed_dim": 32, "num_blocks": 2}
    few = {"num_blocks": 1}, {"depth": 1}
    return Family(
        "mlp_mixer",
        (start,),
        {name: (theirs, {**sizes, "num_heads": 4})},
        (2, 48, 48, 3),
        lambda name: {"indices": range(2), "blocks": range(2)},
        tolerance=tolerance,
        make=_mlp,
        published=(name, *few),
        authors=authors or {},
        listed=f"{start}*",
    )


FAMILIES = {
    "cait": Family(
        "cait",
        ("cait_",),
        {
            "cait_s36_384": (
                {"embed_dim": 32, "img_size": 48, "depth": 2, "num_heads": 4},
                {"features": 32, "image_size": 48, "depth": 2, "num_heads": 4},
            )
        },
        (2, 48, 48, 3),
        lambda name: {"indices": range(2), "blocks": range(2)},
        tolerance=1e-5,
        listed="cait_*",
    ),
    # On a map of odd sides, of which 2x2 convolutions leave out the last row and column.
    "convnext": Family(
        "convnext",
        ("convnext",),
        {"convnext_tiny": _CONVNEXT, "convnext_atto_ols": (_CONVNEXT[0], {**_CONVNEXT[1], "stem": (8, 8)})},
        (2, 92, 76, 3),
        published=("convnext_tiny", *_stages(1)),
        authors={"convnext_tiny": "facebook"},  # the others are timm's own
    ),
    # On images that no stride divides.
    "focalnet": Family(
        "focalnet",
        ("focalnet_",),
        {
            "focalnet_tiny_lrf": ({"embed_dim": 16, "depths": (1, 1), "focal_levels": (3, 3)}, _FOCAL),
            # The huge ones have all that the large ones differ in.
            "focalnet_huge_fl4": (
                {
                    "embed_dim": 16,
                    "depths": (1, 1),
                    "focal_levels": (4, 4),
                    "use_post_norm": True,
                    "use_post_norm_in_modulation": True,
                    "use_overlap_down": True,
                    "layerscale_value": 1e-4,
                    "normalize_modulator": True,
                },
                {**_FOCAL, "normalize_modulator": True},
            ),
        },
        (2, 37, 50, 3),
        tolerance=1e-5,
        make=_focalnet,
        published=("focalnet_tiny_srf", *_stages(1)),
        authors=dict.fromkeys(("focalnet_tiny_lrf", "focalnet_huge_fl4"), "focalnet"),
        listed="focalnet_*",
    ),
    "gmlp": _mlps("gmlp_ti16_224", "gmlp_", 1e-5),
    # timm wants maps that its blocks divide.
    "halonet": Family(
        "byoanet",
        ("",),
        {name: ({}, _ours_of_halonet(name)) for name in _HALONETS},
        (1, 128, 128, 3),
        _maps_of_halonet,
        tolerance=1e-5,
        make=_halonet,
        family="halonet",
    ),
    # On images that no stride divides.
    "mambaout": Family(
        "mambaout",
        ("mambaout_",),
        {"mambaout_tiny": _MAMBAOUT, "mambaout_base_wide_rw": _MAMBAOUT},
        (2, 37, 50, 3),
        tolerance=1e-5,
        published=("mambaout_femto", *_stages(1)),
        authors=dict.fromkeys(("mambaout_tiny", "mambaout_base_wide_rw"), "mambaout"),
        listed="mambaout_*",
    ),
    # Windows and grids of 2x2 tokens.
    "maxvit": Family(
        "maxxvit",
        ("maxvit_",),
        {
            "maxvit_tiny": (
                {
                    "embed_dim": (32, 64),
                    "depths": (1, 2),
                    "stem_width": 16,
                    "head_hidden_size": 64,
                    "transformer_window_size": (2, 2),
                    "img_size": 64,
                },
                {
                    "features": (32, 64),
                    "num_heads": (1, 2),
                    "depths": (1, 2),
                    "stem": 16,
                    "image_size": 64,
                    "window": 2,
                },
            )
        },
        (2, 64, 64, 3),
        lambda name: {"indices": (1, 2)},
        published=("maxvit_tiny_tf_224", *_stages(1)),
        listed="maxvit_*_tf_*",
        reference=lambda name: f"maxvit_{name.split('_')[1]}_tf_{variant(name).config.image_size}",
        # type: ignore[attr-defined]
    ),
    "mlp_mixer": _mlps("mixer_s16_224", "mixer_", 1e-5),
    "pvt": Family(
        "pvt_v2",
        ("pvt_v2_",),
        {"pvt_v2_b0": _PVT, "pvt_v2_b2_li": _PVT},
        (2, 64, 64, 3),
        published=("pvt_v2_b0", *_stages(1)),
        authors=dict.fromkeys(("pvt_v2_b0", "pvt_v2_b2_li"), "pvt"),
        listed="pvt_v2_*",
    ),
    "resmlp": _mlps("resmlp_12_224", "resmlp_", 1e-5, {"resmlp_12_224": "facebook"}),
    # On a map whose sides are odd in most stages.
    "resnet": Family(
        "resnet",
        ("",),
        {
            "resnet18": _resnet({}, features=_WIDTHS),
            "resnet50": _resnet({}),
            "resnet50d": _resnet({"stem_width": 8}, stem=(8, 8, 16)),
            "resnet18d": _resnet({"stem_width": 8}, features=_WIDTHS, stem=(8, 8, 16)),
            "resnet26t": _resnet({"stem_width": 8}, stem=(6, 8, 16)),
            "resnext50_32x4d": _resnet({"cardinality": 4, "base_width": 32}, groups=4, width=0.5),
            "ecaresnet50t": _resnet({"stem_width": 8}, stem=(6, 8, 16)),
            # timm rounds the hidden features to multiples of 8.
            "seresnet50": _resnet({}, gate={"name": "squeeze_excite", "hidden": 8}),
        },
        (2, 69, 77, 3),
        lambda name: {"indices": (1, 2, 3, 4)},
        published=("resnet50", *_stages(1, "layers")),
        family="resnet",
    ),
    # Maps of 8x8 and 4x4 tokens, in windows of 4x4.
    "swin": Family(
        "swin_transformer",
        ("swin_",),
        {"swin_tiny_patch4_window7_224": _SWIN},
        (2, 32, 32, 3),
        published=("swin_tiny_patch4_window7_224", *_stages(1)),
        listed="swin_*",
        row=lambda name: "swin_tiny",
    ),
    # A scale of 100 makes the softmax so sharp that rounding shows: 1e-5 in the gradient.
    "swinv2": Family(
        "swin_transformer_v2",
        ("swinv2_",),
        {"swinv2_tiny_window8_256": _SWIN},
        (2, 32, 32, 3),
        tolerance=5e-5,
        finish=_at_its_limit,
        published=("swinv2_tiny_window16_256", *_stages(1)),
        listed="swinv2_*",
        row=lambda name: "swinv2_tiny",
    ),
}
