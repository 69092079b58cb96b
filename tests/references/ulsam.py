"""Records outputs of the authors' ULSAM: ``python -m tests.references.ulsam CLONE`` writes ulsam.npz beside it.

CLONE is a checkout of github.com/Nandan91/ULSAM (no license: run only). Only numbers are kept: weights and inputs
follow from seeds. The file makes CUDA the default device where it is imported: its classes alone are taken.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, FEATURES, GROUPS = 22, 12, 3
# The authors' names of the parts of a group, and ours of all groups.
NAMES = {
    "conv_dws.weight": "scale",
    "conv_dws.bias": "offset",
    "bn_dws.weight": "norm.scale",
    "bn_dws.bias": "norm.bias",
    "bn_dws.running_mean": "norm.mean",
    "bn_dws.running_var": "norm.var",
    "conv_point.weight": "weight",
    "conv_point.bias": "shift",
    "bn_point.weight": "map_norm.scale",
    "bn_point.bias": "map_norm.bias",
    "bn_point.running_mean": "map_norm.mean",
    "bn_point.running_var": "map_norm.var",
}


def maps() -> np.ndarray:
    """Two maps whose places differ enough for attention to choose: (2, 5, 7, FEATURES)."""
    return (3 * seeded.generator("maps", SEED).standard_normal((2, 5, 7, FEATURES))).astype(np.float32)


def _weights() -> dict[str, np.ndarray]:
    """By the authors' names."""
    size = FEATURES // GROUPS
    shapes: dict[str, tuple[int, ...]] = {}
    for name in NAMES:
        shape: tuple[int, ...] = (size,) if "dws" in name else (1,)
        if name.endswith("dws.weight") and "conv" in name:
            shape = (size, 1, 1, 1)
        if name == "conv_point.weight":
            shape = (1, size, 1, 1)
        shapes |= {f"subspaces.{group}.{name}": shape for group in range(GROUPS)}
    return seeded.weights(shapes, SEED)


def ours() -> dict[str, np.ndarray]:
    """The same by our names: all groups in one array."""
    theirs = _weights()
    return {
        name: np.concatenate([theirs[f"subspaces.{group}.{part}"].reshape(-1) for group in range(GROUPS)])
        for part, name in NAMES.items()
    }


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    import torch

    tree = ast.parse((clone / "ulsam.py").read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    found: dict[str, Any] = {"torch": torch, "nn": torch.nn}
    exec(compile(tree, "ulsam.py", "exec"), found)
    x = torch.from_numpy(maps().transpose(0, 3, 1, 2).copy()).requires_grad_()
    module = found["ULSAM"](FEATURES, FEATURES, 5, 7, GROUPS)
    state = {name: torch.from_numpy(value) for name, value in _weights().items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    out = module.eval()(x)
    torch.sin(out).sum().backward()
    arrays = {"out": out.detach().numpy(), "gradient": x.grad.numpy()}
    arrays = {name: value.transpose(0, 2, 3, 1) for name, value in arrays.items()}
    return arrays | recording.about("github.com/Nandan91/ULSAM", clone)


if __name__ == "__main__":
    recording.write(PATH, record)
