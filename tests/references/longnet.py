"""Records outputs of torchscale's dilated attention: ``python -m tests.references.longnet CLONE`` writes longnet.npz
beside this file.

CLONE is a checkout of github.com/microsoft/torchscale (MIT), commit 4d1e0e82. Its attention kernel, which needs a GPU,
is replaced by a softmax in PyTorch that also returns the log-sum-exp. Only numbers are kept: weights and inputs follow
from a seed.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, BATCH, LENGTH, FEATURES = 5, 2, 64, 24
# Heads, segments, rates, causal, and whether a norm precedes the output projection.
CASES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], bool, bool]] = {
    "causal": (4, (8, 16, 32), (1, 2, 4), True, False),
    "bidirectional": (4, (8, 16, 64), (1, 2, 4), False, True),
    "few_heads": (2, (16, 64), (1, 4), True, True),
    "uneven_heads": (3, (16, 32), (1, 2), False, False),
}
_PARTS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}


def _theirs(name: str) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {f"{part}.weight": (FEATURES, FEATURES) for part in _PARTS.values()}
    shapes |= {f"{part}.bias": (FEATURES,) for part in _PARTS.values()}
    if CASES[name][4]:
        shapes |= {"inner_attn_ln.weight": (FEATURES,), "inner_attn_ln.bias": (FEATURES,)}
    made = seeded.weights(shapes, SEED)
    return {n: w * 3 if n in ("q_proj.weight", "k_proj.weight") else w for n, w in made.items()}  # spreads the scores


def _input() -> np.ndarray:
    return seeded.generator("x", SEED).standard_normal((BATCH, LENGTH, FEATURES)).astype(np.float32)


def load(name: str) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Input, weights by our names, and the recorded output (batch, length, features)."""
    theirs = _theirs(name)
    weights = {f"{ours}.kernel": theirs[f"{part}.weight"].T for ours, part in _PARTS.items()}
    weights |= {f"{ours}.bias": theirs[f"{part}.bias"] for ours, part in _PARTS.items()}
    if CASES[name][4]:
        weights |= {"inner_norm.scale": theirs["inner_attn_ln.weight"], "inner_norm.bias": theirs["inner_attn_ln.bias"]}
    with np.load(PATH) as file:
        return _input(), weights, file[name]


def install_attention() -> None:
    """Puts a softmax in the place of torchscale's attention kernel, and takes this process for the only one."""
    import torch
    from torchscale.component import dilated_attention, multihead_attention

    def softmax(q: Any, k: Any, v: Any, dropout: float, bias: Any, scale: Any, causal: bool) -> Any:
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v), scores.logsumexp(-1)

    multihead_attention.flash_attn_func = softmax
    dilated_attention.get_data_parallel_world_size = lambda: 1


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    import torch

    sys.path.insert(0, str(clone))
    from torchscale.component import dilated_attention

    install_attention()
    made = {}
    for name, (heads, segments, rates, causal, inner) in CASES.items():
        args = types.SimpleNamespace(
            multiway=False, layernorm_eps=1e-5, xpos_rel_pos=False, flash_attention=True, seq_parallel=False,
            segment_length=list(segments), dilated_ratio=list(rates),
        )  # fmt: skip
        layer = dilated_attention.DilatedAttention(args, FEATURES, heads, self_attention=True, subln=inner)
        layer.load_state_dict({n: torch.from_numpy(w.copy()) for n, w in _theirs(name).items()})
        x = torch.from_numpy(_input())
        with torch.no_grad():
            made[name] = layer(x, x, x, is_causal=causal)[0].numpy()
    return made


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))
