"""Records outputs of two authors' layers: ``python -m tests.references.weighted_scores CLONES`` writes
weighted_scores.npz beside this file.

CLONES holds checkouts of github.com/hermansh-id/rcmha (Apache-2.0, commit 87df49bf) and of
github.com/gioannides/Gaussian-Adaptive-Attention (Apache-2.0, commit 145d1bc8), by the names of the repositories. Only
numbers are kept: weights and inputs follow from seeds. Recorded are relative convolutional attention and multi-head
Gaussian adaptive attention over the length and over the features, each with the gradient of the input.
"""

from __future__ import annotations

import ast
import math
import sys
import types
from pathlib import Path
from typing import Any, Optional

import numpy as np

from tests.references import seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, BATCH, FEATURES, HEADS, LENGTH, GAUSSIANS = 20, 2, 12, 3, 23, 3
SPAN = 4096  # distances that the authors' relative attention has keys for
AXES = {"length": 1, "features": 2}


def tokens() -> np.ndarray:
    """(BATCH, LENGTH, FEATURES)."""
    return seeded.generator("tokens", SEED).standard_normal((BATCH, LENGTH, FEATURES)).astype(np.float32)


def weights() -> dict[str, np.ndarray]:
    """Of relative convolutional attention, by the authors' names."""
    width = FEATURES // HEADS
    shapes: dict[str, tuple[int, ...]] = {"output.weight": (FEATURES, FEATURES), "output.bias": (FEATURES,)}
    for part in ("query", "key", "value"):
        shapes[f"{part}.0.linear.weight"] = (FEATURES, FEATURES)
        shapes |= {f"{part}.1.conv.weight": (width, 1, 3), f"{part}.1.conv.bias": (width,)}
    shapes |= {"value.0.linear.bias": (FEATURES,), "query_pos_bias": (HEADS, width)}
    shapes |= {"key_pos_embeddings": (2 * SPAN, HEADS, width), "key_pos_bias": (2 * SPAN, HEADS)}
    return seeded.weights(shapes, SEED)


def mixtures() -> dict[str, np.ndarray]:
    """Offsets and widths (HEADS, GAUSSIANS) of Gaussian adaptive attention."""
    rng = seeded.generator("mixtures", SEED)
    made = {"offset": rng.standard_normal((HEADS, GAUSSIANS)), "width": np.exp(rng.standard_normal((HEADS, GAUSSIANS)))}
    return {name: array.astype(np.float32) for name, array in made.items()}


def _classes(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The classes and functions of a file, without what it imports."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    found = dict(given)
    exec(compile(tree, str(path), "exec"), found)
    return found


def record(clones: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    import torch

    silent = types.SimpleNamespace(debug=lambda *_: None)
    given: dict[str, Any] = {"torch": torch, "nn": torch.nn, "math": math, "tracker": silent, "Module": torch.nn.Module}
    given |= {"Optional": Optional, "List": list}  # of annotations
    made: dict[str, np.ndarray] = {}

    def keep(name: str, call: Any) -> None:
        x = torch.from_numpy(tokens()).requires_grad_()
        y = call(x)
        torch.sin(y).sum().backward()
        made[f"{name}/out"], made[f"{name}/gradient"] = y.detach().numpy(), x.grad.numpy()

    folder = clones / "rcmha" / "rcmha"
    found = _classes(folder / "attention.py", given | _classes(folder / "util.py", given))
    layer = found["RelativeMultiHeadAttention"](HEADS, FEATURES).eval()
    layer.load_state_dict({name: torch.from_numpy(array) for name, array in weights().items()})
    seen = torch.tril(torch.ones(LENGTH, LENGTH))[..., None]

    def attend(x: Any) -> Any:
        x = x.transpose(0, 1)
        return layer(query=x, key=x, value=x, mask=seen).transpose(0, 1)

    keep("rcmha", attend)
    path = clones / "Gaussian-Adaptive-Attention" / "gaussian_adaptive_attention" / "GaussianBlock.py"
    gaussian = _classes(path, given)["MultiHeadGaussianAdaptiveAttention"]
    for name, axis in AXES.items():
        block = gaussian(axis, HEADS, GAUSSIANS)
        state = {
            f"attention_heads.{i}.{theirs}": torch.from_numpy(mixtures()[ours][i])
            for i in range(HEADS)
            for theirs, ours in (("mean_offsets", "offset"), ("c", "width"))
        }
        block.load_state_dict(state)
        keep(name, block)
    return made


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))
