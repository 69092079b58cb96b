"""The sizes of OverLoCK, and the names of its released files (github.com/LMMMEng/OverLoCK), of both forms."""

from __future__ import annotations

from typing import Any

from zoo.naming import Naming, Rearrange

# Stochastic depth as in the authors' scripts.
_SIZES: dict[str, dict[str, Any]] = {
    "overlock_xt": {
        "features": (56, 112, 256, 336),
        "depths": (2, 2, 3, 2),
        "num_heads": (2, 4, 8, 12),
        "drop_path": 0.1,
    },
    "overlock_t": {
        "features": (64, 128, 256, 512),
        "depths": (4, 4, 6, 2),
        "focus_depths": (12, 2),
        "focus_heads": (4, 8),
        "drop_path": 0.15,
    },
    "overlock_s": {
        "features": (64, 128, 320, 512),
        "depths": (6, 6, 8, 3),
        "num_heads": (2, 4, 10, 16),
        "focus_depths": (16, 3),
        "focus_heads": (8, 16),
        "drop_path": 0.4,
    },
    "overlock_b": {
        "features": (80, 160, 384, 576),
        "depths": (8, 8, 10, 4),
        "num_heads": (2, 4, 12, 18),
        "focus_depths": (20, 4),
        "focus_heads": (6, 9),
        "drop_path": 0.5,
    },
}
VARIANTS: dict[str, dict[str, Any]] = {
    **_SIZES,
    **{f"{name}_reparam": {**size, "merged": True} for name, size in _SIZES.items()},
    # Our choice, for two cores: 8x8 and 4x4 tokens from 32x32 pixels.
    "overlock_nano": {
        "image_size": 32,
        "features": (32, 64),
        "depths": (1, 1),
        "num_heads": (2, 4),
        "focus_depths": (1, 1),
        "focus_heads": (2, 4),
        "kernel_sizes": (7, 5),
        "mlp_ratio": 2.0,
        "focus_mlp_ratio": 2.0,
        "scaled": (True, True),
        "projection": 128,
        "drop_path": 0.1,
    },
}

# Of the authors' code, with the overview's classifier.
PARAMETERS = {
    "overlock_xt": 17_307_272,
    "overlock_t": 34_990_472,
    "overlock_s": 58_309_772,
    "overlock_b": 98_012_968,
    "overlock_xt_reparam": 16_791_384,
    "overlock_t_reparam": 33_981_064,
    "overlock_s_reparam": 56_670_476,
    "overlock_b_reparam": 95_520_680,
}

# Crop fractions of preprocessing, by size.
CROPS = {"xt": 0.925, "t": 0.95, "s": 0.95, "b": 0.975, "nano": 0.95}

_POINTWISE = Rearrange("o i 1 1 -> i o")


def _linear(theirs: str, ours: str) -> list[tuple[Any, ...]]:
    """A linear layer, which is a 1x1 convolution in the authors' files."""
    return [(f"{theirs}.weight", f"{ours}.kernel", _POINTWISE), (theirs, ours)]


def _large(theirs: str, ours: str) -> list[tuple[Any, ...]]:
    """A large kernel and its branches, which the authors name by kernel size and dilation too."""
    branch = f"{ours}.branches.{{k}}"
    return [
        (f"{theirs}.lk_origin", f"{ours}.large.conv"),
        (f"{theirs}.origin_bn", f"{ours}.large.norm"),
        (f"{theirs}.dil_conv_k{{k}}", f"{branch}.conv"),
        (f"{theirs}.dil_bn_k{{k}}", f"{branch}.norm"),
    ]


def _response(theirs: str, ours: str) -> list[tuple[Any, ...]]:
    vector = Rearrange("1 d 1 1 -> d")
    return [(f"{theirs}.gamma", f"{ours}.scale", vector), (f"{theirs}.beta", f"{ours}.bias", vector)]


def _scale(theirs: str, ours: str) -> list[tuple[Any, ...]]:
    """Scale and shift of features, which are a depth-wise 1x1 convolution in the authors' files."""
    return [(f"{theirs}.weight", f"{ours}.scale", Rearrange("d 1 1 1 -> d")), (f"{theirs}.bias", f"{ours}.bias")]


def _stage(theirs: str, ours: str) -> list[tuple[Any, ...]]:
    """The blocks of a stage of the base net, or of the overview net."""
    theirs, ours = f"{theirs}.{{b}}", f"{ours}.blocks.{{b}}"
    channel = f"{ours}.mixer.channel"
    return [
        (f"{theirs}.dwconv", f"{ours}.position"),
        (f"{theirs}.proj.0", f"{ours}.mixer_norm"),
        *_large(f"{theirs}.proj.1", f"{ours}.mixer.mixer"),
        (f"{theirs}.proj.2", f"{ours}.mixer.norm"),
        *_linear(f"{theirs}.proj.3.proj.1", f"{ours}.mixer.gate.squeeze"),
        *_linear(f"{theirs}.proj.3.proj.3", f"{ours}.mixer.gate.excite"),
        *_linear(f"{theirs}.proj.4", f"{channel}.up"),
        (f"{theirs}.proj.6", f"{channel}.depthwise"),
        *_response(f"{theirs}.proj.7", f"{channel}.response"),
        *_linear(f"{theirs}.proj.8", f"{channel}.down"),
        *_scale(f"{theirs}.ls", f"{ours}.mixer_skip"),
    ]


def _focus(theirs: str, ours: str) -> list[tuple[Any, ...]]:
    """The blocks of a stage of the focus net."""
    theirs, ours = f"{theirs}.{{b}}", f"{ours}.blocks.{{b}}"
    mixer, channel = f"{ours}.mixer", f"{ours}.channel"
    normed = {"weight_query.0": "query", "weight_key.1": "key", "dyconv_proj.0": "mixed", "gate.0": "gate"}
    return [
        *_scale(f"{theirs}.x_scale", f"{ours}.context_scale"),
        *_scale(f"{theirs}.h_scale", f"{ours}.overview_scale"),
        (f"{theirs}.dwconv1", f"{ours}.position"),
        (f"{theirs}.norm1", f"{ours}.mixer_norm"),
        (f"{theirs}.fusion.0", f"{mixer}.fusion.conv"),
        (f"{theirs}.fusion.1", f"{mixer}.fusion.norm"),
        *_linear(f"{theirs}.fusion.3", f"{mixer}.fusion.out"),
        *_response(f"{theirs}.fusion.4", f"{mixer}.fusion.response"),
        *((f"{theirs}.{name}", f"{mixer}.{part}.conv") for name, part in normed.items()),
        *((f"{theirs}.{name[:-1]}{int(name[-1]) + 1}", f"{mixer}.{part}.norm") for name, part in normed.items()),
        *_linear(f"{theirs}.weight_proj", f"{mixer}.kernels"),
        *_large(f"{theirs}.lepe.0", f"{mixer}.local"),
        (f"{theirs}.lepe.1", f"{mixer}.local_norm"),
        *_linear(f"{theirs}.se_layer.proj.1", f"{mixer}.excite.squeeze"),
        *_linear(f"{theirs}.se_layer.proj.3", f"{mixer}.excite.excite"),
        (f"{theirs}.proj.0", f"{mixer}.out_norm"),
        *_linear(f"{theirs}.proj.1", f"{mixer}.out"),
        (f"{theirs}.rpb1", f"{mixer}.small_bias"),
        (f"{theirs}.rpb2", f"{mixer}.large_bias"),
        (f"{theirs}.dwconv2", f"{ours}.second_position"),
        (f"{theirs}.norm2", f"{ours}.channel_norm"),
        *_linear(f"{theirs}.mlp.0", f"{channel}.up"),
        (f"{theirs}.mlp.2", f"{channel}.depthwise"),
        *_response(f"{theirs}.mlp.3", f"{channel}.response"),
        *_linear(f"{theirs}.mlp.4", f"{channel}.down"),
        *_scale(f"{theirs}.ls1", f"{ours}.mixer_skip"),
        *_scale(f"{theirs}.ls2", f"{ours}.channel_skip"),
    ]


def _normed(theirs: str, ours: str, first: int = 0) -> list[tuple[Any, ...]]:
    """A convolution and its batch norm."""
    return [(f"{theirs}.{first}", f"{ours}.conv"), (f"{theirs}.{first + 1}", f"{ours}.norm")]


RULES = {
    "overlock": Naming(
        [
            *(rule for i in range(4) for rule in _normed("patch_embed1", f"stages.0.downsample.{i}", 3 * i)),
            *(rule for s in range(1, 4) for rule in _normed(f"patch_embed{s + 1}", f"stages.{s}.downsample")),
            *(rule for s in range(4) for rule in _stage(f"blocks{s + 1}", f"stages.{s}")),
            ("high_level_proj", "context"),
            *_normed("patch_embedx.x_proj", "focus.1.features"),
            *_normed("patch_embedx.h_proj", "focus.1.context"),
            *(rule for s in range(2) for rule in _focus(f"sub_blocks{s + 3}", f"focus.{s}")),
            *_normed("head", "norm"),
            *_linear("head.4", "head"),
            ("aux_head.0", "overview_head.norm"),
            *_linear("aux_head.2", "overview_head.head"),
        ]
    )
}
