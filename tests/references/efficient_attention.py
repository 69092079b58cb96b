"""Records outputs of the authors' efficient attention: ``python -m tests.references.efficient_attention CLONES`` writes
efficient_attention.npz beside this file.

CLONES holds checkouts of github.com/OpenNLPLab/cosFormer (Apache-2.0) and github.com/lucidrains/linformer (MIT; not the
authors', who released no code), by the names of the repositories. Only numbers are kept: weights and inputs follow from
seeds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED = 21
FEATURES, HEADS, LENGTH = 12, 3, 19
RANK, MOST = 5, 24
REPOSITORIES = {"cosformer": "OpenNLPLab/cosFormer", "linformer": "lucidrains/linformer"}


def tokens() -> np.ndarray:
    """Two rows, (2, LENGTH, FEATURES)."""
    return seeded.generator("tokens", SEED).standard_normal((2, LENGTH, FEATURES)).astype(np.float32)


def _layers(clones: Path) -> dict[str, tuple[Any, bool]]:
    """The authors' layers by case, and whether they take the length first."""
    cosformer = recording.module_of(clones / "cosFormer" / "cosformer.py").CosformerAttention
    recording.stand_in(
        {"linformer": {}, "linformer.reversible": {"ReversibleSequence": None, "SequentialSequence": None}}
    )
    linformer = recording.module_of(clones / "linformer" / "linformer" / "linformer.py").LinformerSelfAttention
    return {
        "cosformer": (cosformer(FEATURES, HEADS), True),
        "cosformer/causal": (cosformer(FEATURES, HEADS, causal=True), True),
        "linformer": (linformer(FEATURES, MOST, k=RANK, heads=HEADS), False),
        "linformer/one": (linformer(FEATURES, MOST, k=RANK, heads=HEADS, one_kv_head=True), False),
    }


def record(clones: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name: outputs, and gradients of the sum of their sines for the input."""
    from tests.references.live import torch

    arrays: dict[str, np.ndarray] = {}
    shapes: dict[str, Any] = {}
    for case, (layer, length_first) in _layers(clones).items():
        shapes[case] = recording.give_weights(layer, SEED)
        x = torch.from_numpy(tokens()).requires_grad_()
        out = layer(x.transpose(0, 1)).transpose(0, 1) if length_first else layer(x)
        torch.sin(out).sum().backward()
        arrays |= recording.under(case, {"out": out.detach().numpy(), "gradient": x.grad.numpy()})
    named = {
        kind: f"github.com/{name} {recording.commit(clones / name.split('/')[1])[:8]}"
        for kind, name in REPOSITORIES.items()
    }
    return arrays | {"about": np.array(json.dumps({"shapes": shapes, "torch": torch.__version__, **named}))}


if __name__ == "__main__":
    recording.write(PATH, record)
