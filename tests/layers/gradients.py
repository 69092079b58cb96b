"""Parameters of mixers that can't have a gradient, and why."""

from __future__ import annotations

_SHIFT = "a shift common to all keys of a query leaves its softmax as it was"
_CHOICE = "what chooses has no gradient but that of a loss that is reported"
_NORMED = "a batch norm takes away what it adds to all tokens"
_BEFORE_NORM = ("fusion.conv.bias", "value.norm.bias", "local.large.norm.bias",
    *(f"local.branches.{branch}.norm.bias" for branch in ("5_1", "3_1", "3_2", "3_3")))  # fmt: skip
CHOOSING = ("query_down.kernel", "query_down.bias", "key_down.kernel", "key_down.bias", "mixtures", "basis")
WITHOUT_GRADIENT = dict.fromkeys(CHOOSING, _CHOICE) | {
    "key.bias": _SHIFT,
    "key_convolution.bias": _SHIFT,
    "offset_down.bias": _SHIFT,
    "score_mixing.bias": _SHIFT,
    **dict.fromkeys(_BEFORE_NORM, _NORMED),
}
