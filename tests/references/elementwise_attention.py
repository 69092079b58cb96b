"""Records outputs of two authors' attention without a softmax: ``python -m tests.references.elementwise_attention
CLONES`` writes elementwise_attention.npz beside this file.

CLONES holds checkouts of github.com/apple/ml-sigmoid-attention (Apple's sample code license, commit 9273b49) and of
github.com/GuoTianYu2000/Active-Dormant-Attention (without a license, commit 16b3593), by the names of the repositories.
Only numbers are kept: weights and inputs follow from seeds. Recorded are sigmoid attention to both sides and causal
ReLU attention, and causal sigmoid attention with normalized queries and keys, rotary positions or ALiBi, and b = -3,
each with the gradient of the input.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, Optional

import numpy as np

from tests.references import recording, seeded
from tests.references.weighted_scores import classes

PATH = Path(__file__).with_suffix(".npz")
SEED, BATCH, FEATURES, HEADS, LENGTH, BIAS = 22, 2, 12, 3, 23, -3.0
PARTS = ("query", "key", "value", "out")


def tokens() -> np.ndarray:
    """(BATCH, LENGTH, FEATURES)."""
    return seeded.generator("tokens", SEED).standard_normal((BATCH, LENGTH, FEATURES)).astype(np.float32)


def weights() -> dict[str, np.ndarray]:
    """Kernels (out, in) of the projections, and scales and biases (features of a head,) of the norms."""
    shapes: dict[str, tuple[int, ...]] = {f"{part}.weight": (FEATURES, FEATURES) for part in PARTS}
    shapes |= {f"{norm}.{part}": (FEATURES // HEADS,) for norm in ("q_norm", "k_norm") for part in ("weight", "bias")}
    return seeded.weights(shapes, SEED, sharpness=2.0)


def record(clones: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import torch

    made: dict[str, np.ndarray] = {}
    state = {name: torch.from_numpy(array) for name, array in weights().items()}

    def keep(name: str, call: Any) -> None:
        made.update(recording.output_and_gradient(name, call, tokens()))

    typing = type("typing", (), {"Callable": Any, "Optional": Optional, "Tuple": tuple})
    given: dict[str, Any] = {"torch": torch, "nn": torch.nn, "math": math, "t": typing, "__name__": __name__}
    given["lru_cache"] = lambda **_: lambda function: function
    folder = clones / "ml-sigmoid-attention" / "attention_simulator" / "src" / "attention_simulator" / "layers"
    names = ("precompute_freqs_cis", "apply_rotary_emb", "_get_slopes", "get_slopes", "alibi")
    positions = classes(folder / "position_embedding.py", given, names)
    kind = classes(folder / "attention.py", given, ("Attention",))["Attention"]
    past = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    joined = {"qkv.weight": torch.cat([state[f"{part}.weight"] for part in PARTS[:3]])}
    joined["proj.weight"] = state["out.weight"]
    normed = joined | {name: array for name, array in state.items() if "norm" in name}

    def without(attn: Any, mask: Any) -> Any:
        return attn.masked_fill(~mask, -math.inf)

    for name, options, own in (
        ("sigmoid", {}, joined),
        ("sigmoid_rotary", {"qk_norm": True, "qk_transform": positions["apply_rotary_emb"]}, normed),
        ("sigmoid_alibi", {"qk_norm": True, "attn_logits_transform": positions["alibi"]}, normed),
    ):
        layer = kind(FEATURES, torch.sigmoid, HEADS, attn_bias=BIAS, masking_fn=without, **options)
        layer.load_state_dict(own, strict=False)
        seen = None if name == "sigmoid" else past
        keep(name, lambda x, layer=layer, seen=seen: layer(x, seen)["attn_proj"])

    given |= {"Tensor": torch.Tensor, "F": torch.nn.functional, "forward_hook": Any, "Tuple": tuple, "List": list}
    kind = classes(clones / "Active-Dormant-Attention" / "BBM" / "model.py", given, ("Attention",))["Attention"]
    layer = kind(dim=FEATURES, head_dim=FEATURES // HEADS, n_heads=HEADS, attn_use_relu=True)
    theirs = dict(zip(("wq", "wk", "wv", "wo"), PARTS, strict=True))
    layer.load_state_dict({f"{name}.weight": state[f"{part}.weight"] for name, part in theirs.items()})
    keep("relu", lambda x: layer(x, torch.zeros(LENGTH, LENGTH).masked_fill(~past, -math.inf))[0])
    return made


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))
