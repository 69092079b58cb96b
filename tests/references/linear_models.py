"""Records logits of flash-linear-attention's models: ``python -m tests.references.linear_models CLONE`` writes an .npz
beside this file.

CLONE is a checkout of github.com/fla-org/flash-linear-attention (MIT), commit bc3b101d, whose kernels run as those of
:mod:`tests.references.linear_recurrences`. Only numbers are kept: weights and tokens follow from a seed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import seeded
from tests.references.linear_recurrences import interpreted

PATH = Path(__file__).with_suffix(".npz")
SEED, LENGTH, VOCABULARY = 11, 70, 11
SIZES = {"vocab_size": VOCABULARY, "features": 32, "hidden": 48, "depth": 3, "num_heads": 2, "tied": False}
# Our model, and the reference's module, class and options.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gla_nano": ("gla", "GLA", {"num_heads": 2}),
    "retnet_nano": ("retnet", "RetNet", {"num_heads": 2}),
    "hgrn_nano": ("hgrn", "HGRN", {}),
    "hgrn2_nano": ("hgrn2", "HGRN2", {"expand_ratio": 16}),
    "gsa_nano": ("gsa", "GSA", {"num_heads": 2, "num_slots": 16}),
    "mom_nano": ("mom", "Mom", {"num_heads": 2, "head_dim": 16}),
    "rwkv6_nano": ("rwkv6", "RWKV6", {"num_heads": 2, "expand_k": 0.5}),
    "rwkv7_nano": ("rwkv7", "RWKV7", {"head_dim": 16}),
}
# The delta rule's kernels of chunks, which more than 64 tokens take, do not run there.
LENGTHS = {"mom_nano": 45, "rwkv7_nano": 45}


def tokens(name: str = "") -> np.ndarray:
    """int32 (1, length), of the model ``name``."""
    drawn = seeded.generator("tokens", SEED).integers(0, VOCABULARY, (1, LENGTH)).astype(np.int32)
    return drawn[:, : LENGTHS.get(name, LENGTH)]


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A state dict by the reference's names; embeddings of the size of one."""
    made = seeded.weights(shapes, SEED)
    return {name: x * 8 if name == "model.embeddings.weight" else x for name, x in made.items()}


def load(name: str) -> np.ndarray:
    """The recorded logits (1, length, vocabulary)."""
    with np.load(PATH) as file:
        return file[name]


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    interpreted(clone)
    import importlib

    import torch

    # MoM sorts tokens by memory and expects them in order there, as GPUs have them.
    sort = torch.Tensor.argsort
    torch.Tensor.argsort = lambda self, dim=-1: sort(self, dim=dim, stable=True)  # type: ignore[method-assign, misc]
    made: dict[str, np.ndarray] = {}
    for name, (module, kind, options) in CASES.items():
        models = importlib.import_module(f"fla.models.{module}")
        config = getattr(models, f"{kind}Config")(
            hidden_size=SIZES["features"],
            intermediate_size=SIZES["hidden"],
            num_hidden_layers=SIZES["depth"],
            vocab_size=VOCABULARY,
            **options,
        )
        model = getattr(models, f"{kind}ForCausalLM")(config).eval()
        arrays = weights({key: tuple(value.shape) for key, value in model.state_dict().items()})
        model.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})
        with torch.no_grad():
            made[name] = model(torch.from_numpy(tokens(name)).long()).logits.numpy()
    return made


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))
