"""Image models with recorded outputs of their authors' code, and the names that their published sizes begin with.

A family is a row of MODELS and one of SIZES; ``tests/references`` has the scripts that recorded. They are compared in
``test_recorded_models.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layers.position import sinusoids
from tests.references import (
    biformer,
    cores,
    cswin,
    dependencyvit,
    eca,
    fan,
    hvt,
    l2vit,
    lookhere,
    mlp_mixer,
    nat,
    ninformer,
    overlock,
    pvt_v1,
    ravlt,
    rmt,
    rsmamba,
    sparsifiner,
    t2t_vit,
    transnext,
    vig,
    vig_h,
    vir,
    vit_resnas,
)
from zoo.registry import variant
from zoo.vision.agent import in_stages
from zoo.vision.inline import IN_CSWIN
from zoo.vision.nat import neighborhood

Outputs = Callable[[Any, jax.Array], dict[str, jax.Array]]


def stages(model: Any, x: jax.Array) -> dict[str, jax.Array]:
    """Maps of all stages."""
    return {f"features/{i}": map_ for i, map_ in enumerate(model.features(x))}


def stages_of_tokens(model: Any, x: jax.Array) -> dict[str, jax.Array]:
    """The same as sequences."""
    return {name: map_.reshape(len(x), -1, map_.shape[-1]) for name, map_ in stages(model, x).items()}


def blocks(model: Any, x: jax.Array) -> dict[str, jax.Array]:
    """All tokens after each block."""
    found = {}
    for i, (patches, others) in enumerate(model.features(x, range(len(model.blocks)), prefix=True)):
        patches = patches[0] if isinstance(patches, tuple) else patches.reshape(len(x), -1, others.shape[-1])
        found[f"features/{i}"] = jnp.concatenate([others, patches], 1)
    return found


def tokens_and_class(model: Any, x: jax.Array) -> dict[str, jax.Array]:
    """All tokens after each block, the class token last."""
    found = model.features(x, range(len(model.blocks)), prefix=True)
    return {
        f"features/{i}": jnp.concatenate([patches.reshape(len(x), -1, patches.shape[-1]), others], 1)
        for i, (patches, others) in enumerate(found)
    }


def tokens_after_blocks(model: Any, x: jax.Array) -> dict[str, jax.Array]:
    """The patches after each block, as sequences."""
    maps = model.features(x, range(len(model.blocks)))
    return {f"features/{i}": map_.reshape(len(x), -1, map_.shape[-1]) for i, map_ in enumerate(maps)}


def last_rows(model: Any, x: jax.Array) -> dict[str, jax.Array]:
    """The last row of the tokens that enter the first block, and of those after each."""
    maps = [model.patch_embed(x), *model.features(x, range(len(model.blocks)))]
    return {"features": jnp.concatenate([map_[:, -1] for map_ in maps])}


def nothing(model: Any, x: jax.Array) -> dict[str, jax.Array]:
    return {}


@dataclasses.dataclass(frozen=True)
class Row:
    """A recorded model and ours.

    Attributes:
      script: recorded it.
      name: of our variant.
      naming: of the authors' weights.
      options: make ours as narrow and shallow as what was recorded.
      outputs: of ours beside the logits, by their names in the recording.
      cases: of the recording, with the same weights.
      fixed: weights that are not drawn.
      buffers: in the names of recorded constants, which are loaded with the weights.
      constants: names that we write beside what was recorded.
      reference: of the table in docs; by default the repository and the commit.
      sharpness: of the weights, as they were drawn for the recording.
    """

    script: ModuleType
    name: str
    naming: str | None
    options: Mapping[str, Any]
    outputs: Outputs = stages
    cases: tuple[str, ...] = ("",)
    fixed: Callable[[], dict[str, np.ndarray]] = dict
    buffers: str | None = None
    constants: tuple[str, ...] = ()
    reference: str | None = None
    sharpness: float = 1.0


def isotropic(script: ModuleType, **more: Any) -> dict[str, Any]:
    """Our options of a model without stages, from the authors' in ``SIZE``."""
    names = ("depth", "num_heads", "mlp_ratio")
    size = {name: script.SIZE[name] for name in names if name in script.SIZE}
    return {"features": script.SIZE["embed_dim"], **size, "num_classes": script.CLASSES, **more}


WIDTH = cores.FEATURES
_AGENT: dict[str, Any] = {"name": "agent", "agents": cores.AGENTS}
_DEIT = {"image_size": 64, "patch_size": 8, "features": WIDTH, "depth": 2, "num_heads": cores.HEADS, "num_classes": 10}
_SWIN = {"image_size": 112, "features": (WIDTH, 2 * WIDTH), "depths": (1, 2),
    "num_heads": (cores.HEADS, 2 * cores.HEADS), "num_classes": 10}  # fmt: skip
_CSWIN: dict[str, Any] = {
    "image_size": 64,
    "features": tuple(WIDTH * 2**stage for stage in range(4)),
    "depths": (1, 1, 1, 1),
    "num_heads": (cores.HEADS, *[2 * cores.HEADS] * 3),
    "stripes": (1, 2, 2, None),
    "num_classes": 10,
}
_OF_WINDOWS = ("layers.1.blocks.1.attn.relative_position_index", "layers.1.blocks.1.attn_mask")


def _core(name: str, case: str, options: dict[str, Any]) -> Row:
    constants = _OF_WINDOWS if "_swin" in name else ()
    repository = cores.MODELS[case][0]
    return Row(cores, name, "authors", options, nothing, (case,), constants=constants, reference=repository)


def _swin_of(mixer: dict[str, Any]) -> dict[str, Any]:
    return {**_SWIN, "pattern": in_stages("A", lambda _: mixer) | {"1.0": mixer}}


_RALA = {**ravlt.SIZE, "features": ravlt.WIDTHS, "projection": ravlt.PROJECTION, "num_classes": ravlt.CLASSES}
_RMT = {**rmt.SIZE, "features": rmt.WIDTHS, "projection": rmt.PROJECTION, "num_classes": rmt.CLASSES}
_NAT: dict[str, Any] = {
    "features": (nat.WIDTH, 2 * nat.WIDTH), "depths": nat.DEPTHS, "num_heads": nat.HEADS, "mlp_ratio": 2.0,
    "num_classes": nat.CLASSES
}  # fmt: skip
_T2T = {"token_features": 8, "image_size": t2t_vit.SIDES[0]}


OVERLOCK: dict[str, Any] = {
    "features": tuple(overlock.SIZE["embed_dim"]),
    "depths": tuple(overlock.SIZE["depth"]),
    "focus_depths": tuple(overlock.SIZE["sub_depth"]),
    "focus_heads": tuple(overlock.SIZE["sub_num_heads"]),
    "kernel_sizes": tuple(overlock.SIZE["kernel_size"]),
    "mlp_ratio": 2.0,
    "focus_mlp_ratio": 2.0,
    "projection": overlock.SIZE["projection"],
    "num_classes": overlock.CLASSES,
}


def _t2t(tokens: str, name: str) -> Row:
    """At the size of the table of positions, which is fixed, and at another."""
    cases = tuple(f"{tokens}/{side}" for side in t2t_vit.SIDES)
    length, features = (t2t_vit.SIDES[0] // 16) ** 2 + 1, t2t_vit.SIZE["embed_dim"]
    fixed = lambda: {"pos_embed": sinusoids(length, features)[None]}  # noqa: E731
    return Row(t2t_vit, name, "t2t", isotropic(t2t_vit, **_T2T), last_rows, cases, fixed)


def _transnext(case: str, name: str) -> Row:
    """With maps of pretraining that are larger."""
    size = {"features": transnext.WIDTHS, "depths": transnext.DEPTHS, "num_heads": transnext.HEADS}
    size |= {"mlp_ratios": transnext.RATIOS, "reductions": transnext.REDUCTIONS, "num_classes": transnext.CLASSES}
    size |= {"image_size": transnext.SIDE, "pretrained_size": transnext.PRETRAINED}
    size |= {"shared_heads": transnext.SHARED, "chosen_heads": transnext.CHOSEN} if case == "moh" else {}
    return Row(transnext, name, "transnext", size, stages_of_tokens, (case,), reference=case)


MODELS = [
    # On maps whose sides are odd in most stages.
    Row(
        eca,
        "eca_resnet18_k3577",
        "ecanet",
        {
            "depths": (1, 1, 1, 1),
            "num_classes": eca.CLASSES,
            "gate": [{"name": "eca", "kernel_size": size} for size in eca.KERNELS],
        },
    ),
    # With stripes in two stages; in the third they are as wide as the map.
    Row(
        cswin,
        "cswin_tiny_224",
        "cswin",
        {
            "features": tuple(cswin.WIDTH * 2**stage for stage in range(4)),
            "depths": cswin.DEPTHS,
            "num_heads": cswin.HEADS,
            "stripes": (*cswin.STRIPES[:3], None),
            "mlp_ratio": cswin.RATIO,
            "image_size": cswin.SIDE,
            "num_classes": cswin.CLASSES,
        },
        stages_of_tokens,
    ),
    # On maps of odd sides, with linear attention and attention by softmax.
    Row(
        ravlt,
        "ravlt_base",
        "ravlt",
        {**_RALA, "linear": ravlt.LINEAR, "layer_scales": (1.0, 1.0)},
        buffers=".RoPE.",
    ),
    # With both forms of attention.
    Row(
        rmt,
        "rmt_base",
        "rmt",
        {
            **_RMT,
            "decay_ranges": rmt.RANGES,
            "decomposed": tuple(not whole for whole in rmt.WHOLE),
            "layer_scales": tuple(1e-6 if scaled else None for scaled in rmt.SCALED),
        },
        buffers=".Relpos.",
    ),
    # In both forms, with a map as wide as the kernel and one that is stretched to it.
    *(
        Row(
            overlock,
            "overlock_xt",
            "overlock",
            {**OVERLOCK, "merged": case == "deploy"},
            cases=(case,),
        )
        for case in ("train", "deploy")
    ),
    # At the size of the tables, and at another.
    Row(
        pvt_v1,
        "pvt_tiny",
        "pvt",
        {
            "features": pvt_v1.WIDTHS,
            "num_heads": pvt_v1.HEADS,
            "mlp_ratios": pvt_v1.RATIOS,
            "depths": (1, 1, 1, 2),
            "image_size": pvt_v1.SIDE,
            "num_classes": pvt_v1.CLASSES,
        },
        stages_of_tokens,
        ("64", "96"),
    ),
    # On maps whose sides no window divides.
    Row(
        l2vit,
        "l2vit_tiny",
        "l2vit",
        {
            "features": l2vit.WIDTHS,
            "depths": l2vit.DEPTHS,
            "num_heads": l2vit.HEADS,
            "mlp_ratio": l2vit.RATIO,
            "window": l2vit.WINDOW,
            "num_classes": l2vit.CLASSES,
        },
        stages_of_tokens,
    ),
    # With the penalties rounded as the authors' are.
    Row(
        lookhere,
        "lookhere_45_base_patch16_224",
        "lookhere",
        isotropic(
            lookhere,
            patch_size=lookhere.PATCH,
            image_size=lookhere.IMAGES[""][1],
            pooler_ratio=lookhere.SIZE["mlp_ratio"],
            fields=lookhere.FIELDS,
            slope=lookhere.SLOPE,
            layer_slopes=lookhere.SLOPES,
        ),
        blocks,
    ),
    Row(hvt, "hvt_small_4", "hvt", isotropic(hvt, image_size=80, pool_every=hvt.POOL_EVERY), blocks),
    *(Row(vig, f"vig_{kind}", "vig", isotropic(vig, image_size=vig.SIDE), blocks, (kind,)) for kind in vig.KINDS),
    # With all tokens, and with fewer after two of the blocks.
    *(
        Row(
            dependencyvit,
            "dependencyvit_tiny_patch16_224",
            "timm",
            isotropic(dependencyvit, patch_size=4, image_size=dependencyvit.SIDE, prune_after=prune_after),
            nothing if prune_after else tokens_after_blocks,
            (case,),
            sharpness=3.0,
        )
        for case, prune_after in {"whole": (), "lite": (0, 1)}.items()
    ),
    *(
        Row(
            fan,
            f"{start}_12_p16_224" if case == "plain" else f"{start}_12_p4_hybrid",
            "fan",
            isotropic(fan, **size),
            tokens_after_blocks,
            (case,),
            reference=case,
        )
        for case, start, size in (
            ("plain", "fan_small", {"patch_size": 8}),
            ("pooled", "tap_fan_small", {"hybrid": fan.HYBRID, "hybrid_features": fan.HYBRID_FEATURES}),
        )
    ),
    # With a quarter of the connections, and with all.
    *(
        Row(
            sparsifiner,
            "sparsifiner_small_patch16_224",
            "sparsifiner",
            isotropic(
                sparsifiner,
                patch_size=4,
                image_size=24,
                keep=keep,
                tokens_per_mixture=sparsifiner.PER_MIXTURE,
                coefficients=sparsifiner.COEFFICIENTS,
            ),
            blocks,
            (case,),
            sharpness=3.0,
        )
        for case, keep in sparsifiner.CASES.items()
    ),
    # With a gate of three paths, and the mean of two.
    *(
        Row(
            rsmamba,
            "rsmamba_small",
            "rsmamba",
            {
                "features": 16,
                "depth": 2,
                "image_size": rsmamba.SIDE,
                "patch_size": rsmamba.PATCH,
                "stride": rsmamba.STRIDE,
                "num_classes": rsmamba.CLASSES,
                **options,
            },
            tokens_after_blocks,
            (case,),
        )
        for case, options in {"gate": {}, "mean": {"paths": ("forward", "reverse"), "gate": False}}.items()
    ),
    # With heads and hidden widths of each block.
    Row(
        vit_resnas,
        "vit_resnas_nano",
        "vit_resnas",
        {
            "features": vit_resnas.WIDTHS[0],
            "widths": vit_resnas.WIDTHS[1:],
            "stages": vit_resnas.BLOCKS,
            "head_dims": vit_resnas.HEAD_DIMS,
            "stem": 24,
            "patch_size": 14,
            "image_size": vit_resnas.SIDE,
            "num_classes": vit_resnas.CLASSES,
        },
        blocks,
    ),
    # On maps of odd sides.
    Row(
        vig_h,
        "vig_h_tiny",
        "vig",
        {
            "features": tuple(vig_h.WIDTH * 2**stage for stage in range(4)),
            "depths": vig_h.DEPTHS,
            "num_heads": vig_h.HEADS,
            "num_classes": vig_h.CLASSES,
        },
    ),
    Row(vir, "vir_small_patch16_224", "vir", isotropic(vir, patch_size=4, image_size=20), tokens_and_class),
    # On maps whose sides the dilation does not divide.
    Row(nat, "nat_small", None, {**_NAT, "window": nat.WINDOW}, cases=("nat",)),
    Row(nat, "dinat_tiny", None, {**_NAT, "window": nat.WINDOW, "dilations": (4, 1)}, cases=("dinat",)),
    Row(
        nat,
        "dinat_s_tiny",
        None,
        {
            **_NAT,
            "pattern": {f"0.{index}": neighborhood(nat.WINDOW, 4, index) for index in range(2)}
            | {"1.0": neighborhood(nat.WINDOW, 1, 0)},
        },
        cases=("dinat_s",),
    ),
    Row(
        mlp_mixer,
        "mixer_s16_224",
        "google",
        {
            "features": 16,
            "depth": 2,
            "num_heads": 2,
            "mlp_ratio": 2.0,
            "mlp": "gelu_tanh",
            "patch_size": 4,
            "image_size": 12,
            "num_classes": mlp_mixer.CLASSES,
        },
        nothing,
    ),
    Row(
        ninformer,
        "ninformer_cifar",
        "ninformer",
        {"features": 16, "mlp_ratio": 1.5, "depth": 2, "num_heads": 2, "image_size": 12},
        tokens_after_blocks,
    ),
    _transnext("plain", "transnext_tiny"),
    _transnext("moh", "moh_transnext_small_75"),
    _t2t("performer", "t2t_vit_14"),
    _t2t("transformer", "t2t_vit_t_14"),
    _core("agent_deit_tiny_patch16_224", "agent/deit", {**_DEIT, "pattern": {0: {**_AGENT, "prefix": 1}}}),
    _core("agent_swin_tiny_224", "agent/swin", _swin_of(_AGENT)),
    _core("agent_cswin_tiny_224", "agent/cswin", {**_CSWIN, "pattern": {"0.every": _AGENT, "1.every": _AGENT}}),
    _core("inline_deit_tiny_patch16_224", "inline/deit", _DEIT),
    _core("inline_swin_tiny_224", "inline/swin", _swin_of({"name": "inline"})),
    _core("inline_cswin_tiny_224", "inline/cswin", {**_CSWIN, "pattern": {"0.every": IN_CSWIN, "1.every": IN_CSWIN}}),
]


# The case of each family whose gradient is compared: the forward pass shows what else is in its others.
GRADIENTS = {variant(row.name).family: (row.name, row.cases[0]) for row in reversed(MODELS)}


# Of each script: what its counted names begin with in ours, and where these are all that are published, how all begin.
SIZES: list[tuple[ModuleType, str, tuple[str, ...]]] = [
    (biformer, "", ("biformer_",)),
    (cswin, "", ("cswin_",)),
    (eca, "", ("eca_resnet",)),
    (fan, "", ("fan_", "tap_fan_")),
    (hvt, "hvt_", ()),
    (l2vit, "l2vit_", ("l2vit_",)),
    (nat, "", ("nat_", "dinat_")),
    (ninformer, "ninformer_", ("ninformer_",)),
    (overlock, "overlock_", ("overlock_",)),
    (pvt_v1, "pvt_", ()),
    (ravlt, "ravlt_", ("ravlt_",)),
    (rmt, "rmt_", ("rmt_",)),
    (rsmamba, "rsmamba_", ("rsmamba_",)),
    (sparsifiner, "sparsifiner_", ("sparsifiner_",)),
    (t2t_vit, "t2t_vit_", ("t2t_vit_",)),
    (transnext, "", ("transnext_", "moh_transnext_")),
    (vig, "vig_", ()),
    (vig_h, "vig_h_", ("vig_h_",)),
    (vir, "vir_", ("vir_",)),
    (vit_resnas, "vit_resnas_", ("vit_resnas_",)),
]
