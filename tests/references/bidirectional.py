"""Records authors' bidirectional layers: ``python -m tests.references.bidirectional LION HYDRA`` writes an .npz beside
this file.

LION is a checkout of github.com/LIONS-EPFL/LION, commit 32a0136, of which the attention runs in its format "Attention";
HYDRA one of github.com/goombalab/hydra (MIT), commit 55bef74, with a plain recurrence and norm for the kernels. Only
numbers are kept: outputs, and gradients of the sum of sin(outputs); weights and inputs follow from a seed.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, BATCH, FEATURES, HEADS, LENGTH = 9, 2, 16, 2, 17
HYDRA = {"d_state": 4, "d_conv": 5, "headdim": 8, "ngroups": 2}


def inputs() -> np.ndarray:
    """(batch, length, features)."""
    return seeded.generator("x", SEED).standard_normal((BATCH, LENGTH, FEATURES)).astype(np.float32)


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A state dict by the reference's names."""
    return seeded.weights(shapes, SEED)


def load(name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The recorded output (batch, length, features), and gradients by the reference's names."""
    with np.load(PATH) as file:
        own = {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}
    return own.pop("out"), own


def _lion(clone: Path) -> dict[str, Any]:
    import torch
    from torch import nn

    source = (clone / "img_classification/lion/models_lion.py").read_text()
    space: dict[str, Any] = {"torch": torch, "nn": nn, "np": np}
    exec("# Mask" + source.split("# Mask", 1)[1].split("class Lion_Block", 1)[0], space)
    curves: dict[str, Any] = {"np": np}
    exec((clone / "img_classification/lion/curves.py").read_text(), curves)
    space |= {name: curves[name] for name in ("compute_curve_order", "coords_to_index", "index_to_coords_indexes")}
    kinds = {"none": "Lit", "fixed": "Decay", "selective": "Selective"}
    made = {}
    for ours, theirs in kinds.items():
        for label, order in {"": "Normal", "_natural": "S"}.items() if ours != "none" else [("", "Normal")]:
            options: dict[str, Any] = {"mask_type": theirs, "order": order, "num_patches": LENGTH}
            made[f"lion{label} {ours}"] = space["Lion_Attention"](FEATURES, HEADS, qkv_bias=True, **options)
    return made


def _hydra(clone: Path) -> dict[str, Any]:
    import torch

    class Norm(torch.nn.Module):
        def __init__(self, size: int, eps: float, norm_before_gate: bool, **options: Any):
            super().__init__()
            assert norm_before_gate
            self.weight, self.eps = torch.nn.Parameter(torch.ones(size)), eps

        def forward(self, x: Any, z: Any) -> Any:
            return (
                x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight * torch.nn.functional.silu(z)
            )

    def scan(x: Any, dt: Any, A: Any, B: Any, C: Any, **options: Any) -> Any:
        repeats = x.shape[2] // B.shape[2]
        B, C = B.repeat_interleave(repeats, 2), C.repeat_interleave(repeats, 2)
        state, out = torch.zeros(()), []
        for t in range(x.shape[1]):
            written = torch.einsum("bhn,bhp->bhnp", B[:, t], dt[:, t, :, None] * x[:, t])
            state = torch.exp(A * dt[:, t])[..., None, None] * state + written
            out.append(torch.einsum("bhn,bhnp->bhp", C[:, t], state))
        return torch.stack(out, 1)

    stubs: dict[str, dict[str, Any]] = {
        "mamba_ssm.ops.triton.layernorm_gated": {"RMSNorm": Norm},
        "mamba_ssm.ops.triton.ssd_combined": {"mamba_chunk_scan_combined": scan},
        "hydra.modules.ops": {"hydra_split_conv1d_scan_combined": None},
    }
    for name, things in stubs.items():
        sys.modules[name] = module = types.ModuleType(name)
        vars(module).update(things)
    space: dict[str, Any] = {"__name__": "hydra"}
    source = (clone / "hydra/modules/hydra.py").read_text()
    # What PyTorch would have to differentiate through is not written in place.
    exec(source.replace("y[:, 0, :] = 0.0", "y = torch.cat((0 * y[:, :1], y[:, 1:]), 1)"), space)
    return {"hydra": space["Hydra"](FEATURES, **HYDRA)}


def record(lion: Path, hydra: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    import torch

    made: dict[str, np.ndarray] = {}
    for name, layer in {**_lion(lion), **_hydra(hydra)}.items():
        parameters = dict(layer.named_parameters())
        given = weights({key: tuple(value.shape) for key, value in parameters.items()})
        with torch.no_grad():
            for key, value in parameters.items():
                value.copy_(torch.from_numpy(given[key]))
        out = layer(torch.from_numpy(inputs()))
        torch.sin(out).sum().backward()
        made[f"{name}/out"] = out.detach().numpy()
        for key, value in parameters.items():
            # LION-S's decays are copied in the authors' code, and have no gradient there.
            made[f"{name}/{key}"] = np.full(value.shape, np.nan) if value.grad is None else value.grad.numpy()
    return made


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1]), Path(sys.argv[2])))
