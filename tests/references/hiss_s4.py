"""Records outputs of the authors' HiSS of S4: ``python -m tests.references.hiss_s4 CLONE`` writes hiss_s4.npz.

CLONE is a checkout of github.com/raunaqbhirangi/hiss (MIT). Only numbers are kept: of the authors' class with S4 on
both levels, narrow and shallow, and the parameter counts of their models with S4, for 12 numbers of a reading and 3
wanted. Before it first runs, their S4 holds C; then C (I - A'^L) for the length that it saw.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording
from tests.references.hiss import OUTPUTS, SHAPE, create_block, readings

PATH = Path(__file__).with_suffix(".npz")
SEED = 98
SIZE: dict[str, int] = {"low_features": 8, "low_depth": 1, "features": 12, "depth": 2, "ratio": 5}
STATES = 64
Level = tuple[str, int, int]
MODELS: dict[str, tuple[Level, Level]] = {
    "hiss_ronin": (("s4", 256, 6), ("s4", 128, 6)),
    "hiss_marker_writing": (("s4", 256, 6), ("mamba", 128, 6)),
    "hiss_total_capture": (("s4", 256, 6), ("mamba", 128, 4)),
    "hiss_intrinsic_slip": (("s4", 256, 6), ("mamba", 256, 4)),
    "hiss_joystick_control": (("s4", 256, 4), ("mamba", 256, 4)),
}


def spread(name: str, weights: np.ndarray) -> np.ndarray:
    """Seeded weights of such a size that states last for some readings and turn."""
    kind = name.rpartition(".")[2]
    if kind == "inv_dt":
        return weights - 2
    if kind == "A_imag":
        return np.abs(10 * weights)
    return 3 * weights if kind in ("B", "C", "P") else weights


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import torch

    norms = {"RMSNorm": None, "layer_norm_fn": None, "rms_norm_fn": None}
    recording.stand_in(
        {
            "hiss": {},
            "hydra": {},
            "hydra.utils": {"instantiate": lambda made: made},
            "mamba_ssm": {},
            "mamba_ssm.models.mixer_seq_simple": {"create_block": create_block},
            "mamba_ssm.ops.triton.layernorm": norms,
        }
    )
    sys.modules["hydra"].utils = sys.modules["hydra.utils"]  # type: ignore[attr-defined]
    sys.modules["hiss.s4"] = recording.module_of(clone / "hiss" / "s4.py")
    authors = recording.module_of(clone / "hiss" / "models.py")

    def make(inputs: int, outputs: int, low: Level, high: Level, ratio: int) -> Any:
        (_, low_width, low_depth), (kind, width, depth) = low, high
        s4 = {"dropout": 0.1, "prenorm": True}
        return authors.HierarchicalModel(
            inputs,
            outputs,
            width,
            lambda input_dim: authors.S4Model(input_dim, width, low_width, nlayers=low_depth, **s4),
            authors.S4Net(width, nlayers=depth, **s4) if kind == "s4" else authors.MambaNet(width, depth),
            freq_ratio=ratio,
        )

    low, high = ("s4", SIZE["low_features"], SIZE["low_depth"]), ("s4", SIZE["features"], SIZE["depth"])
    model = make(SHAPE[-1], OUTPUTS, low, high, SIZE["ratio"])
    shapes = recording.give_weights(model, SEED, leave=("pos_encoder", "l_kernel"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(spread(name, p.numpy())))
    x = torch.from_numpy(readings()).requires_grad_()
    y = model(x)
    torch.sin(y).sum().backward()
    arrays = {"outputs": y.detach().numpy(), "gradient_of_readings": x.grad.numpy()}
    counts = {name: recording.count(make(12, 3, *levels, 10)) for name, levels in MODELS.items()}
    return arrays | recording.about("github.com/raunaqbhirangi/hiss", clone, counts=counts, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
