"""Agent Attention: On the Integration of Softmax and Linear Attention (Han et al., ECCV 2024, arXiv:2312.08874).

    x = x + AgentAttention(norm(x));  x = x + MLP(norm(x))        in DeiT and in the first stages of Swin and CSWin

Agent attention sees the whole map, by 9, 16, 49 and 49 agents in the four stages; the other blocks keep the host's
windows or stripes. With A for a stage of agent attention and B for one of the host's, as the authors write it: Swin
tiny AAAB, small AABB, base AA and the first two blocks of stage 3; CSWin, whose first stages are deeper than the
original's, AABB. In DeiT base the first four blocks have agents. Published top-1 accuracy on ImageNet-1k (tiny, small,
base): DeiT 74.9, 80.5, 82.0; Swin 82.6, 83.7, 84.0, and base at 384 84.9; CSWin 83.1, 83.9, 84.7, and base at 384 85.8.
Parameters are those of the released code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zoo.backbones.model import choose
from zoo.naming import Naming, Rearrange
from zoo.registry import freeze, register_family
from zoo.vision import cswin, swin, vit
from zoo.vision.cswin import CSWin, CSWinConfig
from zoo.vision.swin import Swin, SwinConfig
from zoo.vision.vit import ViT, ViTConfig

AGENTS = (9, 16, 49, 49)


def _deit(
    features: int, num_heads: int, agents: int = 49, blocks: tuple[int, ...] = tuple(range(12))
) -> dict[str, Any]:
    mixer = {"name": "agent", "agents": agents, "prefix": 1}
    return {"features": features, "num_heads": num_heads, "pattern": dict.fromkeys(blocks, mixer)}


def in_stages(kinds: str, of_stage: Callable[[int], Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """A pattern for Swin that keeps its own windows in some blocks.

    Args:
      kinds: a letter for each stage: "W" for windows, "M" for the mixer in the first two blocks only, any other for the
        mixer in all blocks.
      of_stage: the mixer of a stage.
    """
    keys = {"W": (), "M": ("0", "1")}
    return {f"{stage}.{key}": of_stage(stage) for stage, kind in enumerate(kinds) for key in keys.get(kind, ("every",))}


def swin_sizes(kinds: tuple[str, str, str], of_stage: Callable[[int], Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sizes of Swin (tiny, small, base, and base at 384 pixels), with the mixer where ``kinds`` says
    (:func:`in_stages`)."""
    sizes = [swin.published_size(96, 6, 0.2), swin.published_size(96, 18, 0.3), swin.published_size(128, 18, 0.5)]
    made = {
        f"{name}_224": {**size, "pattern": in_stages(kind, of_stage)}
        for name, size, kind in zip(("tiny", "small", "base"), sizes, kinds, strict=True)
    }
    return {**made, "base_384": {**made["base_224"], "image_size": 384, "window": 12}}


def only_in_windows(buffers: Mapping[str, Any]) -> dict[str, Any]:
    """Swin's buffers, for those blocks alone that keep its windows."""

    def where_windowed(computed: Any) -> Any:
        def value(config: Any, where: Mapping[str, Any]) -> np.ndarray | None:
            stage, index = where["s"], where["b"]
            replaced = choose(config.pattern or {}, stage, index, config.depths[stage]) or config.mixer
            return None if replaced else computed(config, where)

        return value

    return {name: where_windowed(computed) for name, computed in buffers.items()}


def in_swin(own: list[tuple[Any, ...]]) -> dict[str, Naming]:
    """The authors' names of a Swin in which another mixer replaces some: Swin's names, and the rules ``own``, (theirs,
    ours, ...), inside that mixer.
    """
    theirs, mixer = "layers.{s}.blocks.{b}.attn", f"{swin.OURS}.mixer"
    parts = tuple(f"{mixer}.{part}" for part in ("query", "key", "value"))
    projections = [(f"{theirs}.qkv", parts, swin.Split()), (f"{theirs}.proj", f"{mixer}.out")]
    names = swin.RULES["microsoft"]
    inside = [(f"{theirs}.{released}", f"{mixer}.{ours}", *rest) for released, ours, *rest in own]
    return {
        "authors": dataclasses.replace(
            names, rules=[*inside, *projections, *names.rules], buffers=only_in_windows(names.buffers)
        )
    }


def in_deit(own: list[tuple[Any, ...]]) -> dict[str, Naming]:
    """The authors' names of a DeiT with another mixer: timm's, and ``own``."""
    names = vit.RULES["timm"]
    inside = [(f"blocks.{{i}}.attn.{released}", f"blocks.{{i}}.mixer.{ours}", *rest) for released, ours, *rest in own]
    return {"authors": dataclasses.replace(names, rules=[*inside, *names.rules])}


def in_cswin(own: list[tuple[Any, ...]]) -> dict[str, Naming]:
    """The authors' names of a CSWin in which a mixer of the whole map replaces some: CSWin's, and ``own``."""
    names = cswin.RULES["cswin"]
    inside = [
        (f"stage{stage + 1}.{{b}}.attns.0.{released}", f"stages.{stage}.blocks.{{b}}.mixer.{ours}", *rest)
        for stage in range(4)
        for released, ours, *rest in own
    ]
    return {"authors": dataclasses.replace(names, rules=[*inside, *names.rules])}


_OWN: list[tuple[Any, ...]] = [
    ("an_bias", "agent_bias.coarse"),
    ("na_bias", "token_bias.coarse"),
    ("ah_bias", "agent_bias.rows", Rearrange("1 h a r 1 -> h a r")),
    ("aw_bias", "agent_bias.columns", Rearrange("1 h a 1 c -> h a c")),
    ("ha_bias", "token_bias.rows", Rearrange("1 h r 1 a -> h a r")),
    ("wa_bias", "token_bias.columns", Rearrange("1 h 1 c a -> h a c")),
    ("ac_bias", "agent_bias.prefix", Rearrange("1 h a p -> h a p")),
    ("ca_bias", "token_bias.prefix", Rearrange("1 h p a -> h a p")),
    ("dwc", "enhancement"),
]

DEIT: dict[str, dict[str, Any]] = {
    "agent_deit_tiny_patch16_224": _deit(192, 3),
    "agent_deit_small_patch16_224": _deit(384, 6),
    "agent_deit_small_patch16_448": {**_deit(384, 6), "image_size": 448},
    "agent_deit_base_patch16_224": _deit(768, 12, 81, tuple(range(4))),
}
SWIN = {
    f"agent_swin_{name}": options
    for name, options in swin_sizes(
        ("AAAW", "AAWW", "AAMW"), lambda stage: {"name": "agent", "agents": AGENTS[stage]}
    ).items()
}
_IN_CSWIN = {f"{stage}.every": {"name": "agent", "agents": AGENTS[stage]} for stage in range(2)}
_DEEPER: dict[str, Any] = {"depths": (3, 6, 29, 2), "pattern": _IN_CSWIN}
_WIDER = {**_DEEPER, "features": (96, 192, 384, 768), "num_heads": (4, 8, 16, 32)}
CSWIN: dict[str, dict[str, Any]] = {
    "agent_cswin_tiny_224": {"depths": (2, 4, 18, 1), "pattern": _IN_CSWIN, "drop_path": 0.2},
    "agent_cswin_small_224": {**_DEEPER, "drop_path": 0.4},
    "agent_cswin_base_224": {**_WIDER, "drop_path": 0.5},
    "agent_cswin_base_384": {**_WIDER, "drop_path": 0.7, "image_size": 384, "stripes": (1, 2, 12, None)},
}
PARAMETERS = {
    "agent_deit_tiny_patch16_224": 6_015_640,
    "agent_deit_small_patch16_224": 22_647_112,
    "agent_deit_small_patch16_448": 23_070_472,
    "agent_deit_base_patch16_224": 87_204_904,
    "agent_swin_tiny_224": 28_902_964,
    "agent_swin_small_224": 49_666_684,
    "agent_swin_base_224": 88_095_096,
    "agent_swin_base_384": 88_305_016,
    "agent_cswin_tiny_224": 20_458_672,
    "agent_cswin_small_224": 32_814_100,
    "agent_cswin_base_224": 73_249_696,
    "agent_cswin_base_384": 73_328_416,
}


def register_hosts(
    family: str,
    deit: Mapping[str, Mapping[str, Any]],
    of_swin: Mapping[str, Mapping[str, Any]],
    of_cswin: Mapping[str, Mapping[str, Any]],
    own: list[tuple[Any, ...]],
    **common: Any,
) -> None:
    """Registers the models of a mixer in DeiT, in Swin and in CSWin."""

    def frozen(models: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        return {name: {field: freeze(value) for field, value in options.items()} for name, options in models.items()}

    preprocess = {"crop_fraction": 0.9}
    register_family(family, ViT, ViTConfig, frozen(deit), rules=in_deit(own), preprocess=preprocess, **common)
    register_family(family, Swin, SwinConfig, frozen(of_swin), rules=in_swin(own), preprocess=preprocess, **common)
    inside = in_cswin([("get_v" if released == "dwc" else released, *rest) for released, *rest in own])
    name = f"{family}_cswin"
    register_family(name, CSWin, CSWinConfig, frozen(of_cswin), rules=inside, preprocess=preprocess, **common)


register_hosts("agent", DEIT, SWIN, CSWIN, _OWN, parameters=PARAMETERS, paper=(2,))
