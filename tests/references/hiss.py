"""Records outputs of the authors' HiSS: ``python -m tests.references.hiss CLONE`` writes hiss.npz beside it.

CLONE is a checkout of github.com/raunaqbhirangi/hiss (MIT). Only numbers are kept. The model is the authors' class with
Mamba on both levels, narrow and shallow; the mixer of its blocks, a kernel for GPUs, is transformers' slow form of the
same, in a block as mamba_ssm's. The parameter count of the model of VECtor is recorded as well.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, SHAPE, OUTPUTS = 98, (2, 35, 3), 2
SIZE: dict[str, int] = {"low_features": 8, "low_depth": 1, "features": 12, "depth": 2, "ratio": 5}
VECTOR: dict[str, int] = {"low_features": 32, "low_depth": 4, "features": 64, "depth": 4, "ratio": 10}


def readings() -> np.ndarray:
    """(batch, length, in_features) float32."""
    return seeded.generator("readings", SEED).standard_normal(SHAPE).astype(np.float32)


def create_block(width: int, *, norm_epsilon: float, **_: Any) -> Any:
    """A block of mamba_ssm: what was added so far goes beside what a mixer makes of its norm."""
    import transformers

    from tests.references.live import torch

    config = transformers.MambaConfig(hidden_size=width, vocab_size=8, num_hidden_layers=1)

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.LayerNorm(width, eps=norm_epsilon)
            self.mixer = transformers.models.mamba.modeling_mamba.MambaMixer(config, 0)

        def forward(self, x: Any, residual: Any = None, inference_params: Any = None) -> Any:
            residual = x if residual is None else x + residual
            return self.mixer(self.norm(residual)), residual

    return Block()


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import torch

    norms = {"RMSNorm": None, "layer_norm_fn": None, "rms_norm_fn": None}
    recording.stand_in(
        {
            "hydra": {},
            "hydra.utils": {"instantiate": lambda made: made},
            "mamba_ssm": {},
            "mamba_ssm.models.mixer_seq_simple": {"create_block": create_block},
            "mamba_ssm.ops.triton.layernorm": norms,
        }
    )
    sys.modules["hydra"].utils = sys.modules["hydra.utils"]  # type: ignore[attr-defined]
    authors = recording.module_of(clone / "hiss" / "models.py")

    def make(inputs: int, outputs: int, size: dict[str, int]) -> Any:
        low = {"output_dim": size["features"], "model_dim": size["low_features"], "nlayers": size["low_depth"]}
        return authors.HierarchicalModel(
            inputs,
            outputs,
            size["features"],
            lambda input_dim: authors.MambaModel(input_dim, **low),
            authors.MambaNet(size["features"], size["depth"]),
            freq_ratio=size["ratio"],
        )

    model = make(SHAPE[-1], OUTPUTS, SIZE)
    shapes = recording.give_weights(model, SEED, leave=("pos_encoder",))
    x = torch.from_numpy(readings()).requires_grad_()
    y = model(x)
    torch.sin(y).sum().backward()
    gradients = {f"gradient/{name}": p.grad.numpy() for name, p in model.named_parameters()}
    count = recording.count(make(12, 3, VECTOR))
    arrays = {"outputs": y.detach().numpy(), "gradient_of_readings": x.grad.numpy(), **gradients}
    return arrays | recording.about("github.com/raunaqbhirangi/hiss", clone, count=count, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
