"""Records outputs of flash-linear-attention's RWKV-7: ``python -m tests.references.rwkv7 CLONE`` writes an .npz beside
this file.

CLONE is a checkout of github.com/fla-org/flash-linear-attention (MIT), commit bc3b101d, run as
:mod:`tests.references.linear_recurrences` says, at a length that its recurrent kernels serve: those of chunks do not
run there. Two layers in a row, of which the second draws its values toward the first's. Only numbers are kept: weights
and inputs follow from a seed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tests.references import seeded
from tests.references.linear_recurrences import interpreted

PATH = Path(__file__).with_suffix(".npz")
SEED, BATCH, FEATURES, HEADS, LAYERS, LENGTHS = 7, 2, 32, 4, 2, (45,)
RANKS = {"decay": 6, "rate": 5, "residual": 4, "gate": 7}
LINEAR = {
    "query": "r_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj",
    **{f"{ours}.{part}": f"{theirs}.lora.{place}"
       for ours, theirs in {"decay": "w_lora", "rate": "a_lora", "residual": "v_lora", "gate": "g_lora"}.items()
       for part, place in (("down", 0), ("up", 2))},
}  # fmt: skip
OTHERS = {"removal": "k_k", "replacement": "k_a", "bonus": "r_k", "norm": "g_norm.weight", "norm_bias": "g_norm.bias"}
SHIFTS = [f"x_{name}" for name in "rwkvag"]


def shapes(layer: int) -> dict[str, tuple[int, ...]]:
    """Of the parameters of a layer, by the reference's names."""
    made: dict[str, tuple[int, ...]] = dict.fromkeys(SHIFTS, (1, 1, FEATURES))
    made |= dict.fromkeys(OTHERS.values(), (FEATURES,))
    made["r_k"] = (HEADS, FEATURES // HEADS)
    for ours, theirs in LINEAR.items():
        gate, _, part = ours.partition(".")
        if gate == "residual" and not layer:
            continue
        rank = RANKS.get(gate, FEATURES)
        made[f"{theirs}.weight"] = (rank, FEATURES) if part == "down" else (FEATURES, rank)
        if part == "up" and gate != "gate":
            made[f"{theirs}.bias"] = (FEATURES,)
    return made


def weights(layer: int) -> dict[str, np.ndarray]:
    """By the reference's names."""
    return seeded.weights(shapes(layer), SEED + layer)


def ours(layer: int) -> dict[str, np.ndarray]:
    """The same by our names."""
    theirs = weights(layer)
    made = {"shift": np.concatenate([theirs[name][0] for name in SHIFTS])}
    made |= {name: theirs[other].reshape(-1) for name, other in OTHERS.items()}
    for name, other in LINEAR.items():
        if f"{other}.weight" in theirs:
            made[f"{name}.kernel"] = theirs[f"{other}.weight"].T
        if f"{other}.bias" in theirs:
            made[f"{name}.bias"] = theirs[f"{other}.bias"]
    return made


def inputs(length: int) -> np.ndarray:
    """(batch, length, features)."""
    return seeded.generator(f"x {length}", SEED).standard_normal((BATCH, length, FEATURES)).astype(np.float32)


def load() -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs, and the recorded outputs of the two layers, (layers, batch, length, features)."""
    with np.load(PATH) as file:
        return [(inputs(length), file[str(length)]) for length in LENGTHS]


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    interpreted(clone)
    import torch
    from fla.layers.rwkv7 import RWKV7Attention

    layers = []
    for index in range(LAYERS):
        layer = RWKV7Attention(
            hidden_size=FEATURES, head_dim=FEATURES // HEADS, layer_idx=index, num_hidden_layers=LAYERS,
            decay_low_rank_dim=RANKS["decay"], a_low_rank_dim=RANKS["rate"], v_low_rank_dim=RANKS["residual"],
            gate_low_rank_dim=RANKS["gate"],
        ).eval()  # fmt: skip
        given = weights(index)
        assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == shapes(index)
        layer.load_state_dict({name: torch.from_numpy(value) for name, value in given.items()})
        layers.append(layer)
    made = {}
    for length in LENGTHS:
        x, first, outputs = torch.from_numpy(inputs(length)), None, []
        with torch.no_grad():
            for layer in layers:
                y, _, _, first = layer(x, v_first=first)
                outputs.append(y.numpy())
        made[str(length)] = np.stack(outputs)
    return made


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))
