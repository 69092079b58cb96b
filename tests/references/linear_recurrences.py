"""Records outputs of flash-linear-attention's layers: ``python -m tests.references.linear_recurrences CLONE`` writes an
.npz beside this file.

CLONE is a checkout of github.com/fla-org/flash-linear-attention (MIT), commit bc3b101d. Its kernels run through
Triton's interpreter, each with the first of its configurations; over more than 64 tokens they are others than up to 64.
(KDA's for more than 64 do not run there: its recurrent ones are recorded at both lengths.)
Only numbers are kept: weights and inputs follow from a seed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, BATCH, FEATURES, HEADS, LENGTHS = 7, 2, 32, 4, (45, 100)
# The mixer, its options by our names, the reference's module, class and options, and the names of its parameters.
CASES: dict[str, tuple[str, dict[str, Any], str, str, dict[str, Any], dict[str, str]]] = {
    "retention": (
        "retention", {}, "multiscale_retention", "MultiScaleRetention", {},
        {"query": "q_proj", "key": "k_proj", "value": "v_proj", "gate": "g_proj", "out": "o_proj",
            "norm": "g_norm_swish_gate"},
    ),
    "gla": (
        "gated_linear_attention", {}, "gla", "GatedLinearAttention", {},
        {
            "query": "q_proj", "key": "k_proj", "value": "v_proj", "gate": "g_proj", "out": "o_proj",
            "norm": "g_norm_swish_gate",
            "decay.down": "gk_proj.0", "decay.up": "gk_proj.1",
        },
    ),
    "gla, convolutions": (
        "gated_linear_attention", {"conv_size": 4}, "gla", "GatedLinearAttention", {"use_short_conv": True},
        {
            "query": "q_proj", "key": "k_proj", "value": "v_proj", "gate": "g_proj", "out": "o_proj",
            "norm": "g_norm_swish_gate",
            "decay.down": "gk_proj.0", "decay.up": "gk_proj.1",
            "query_conv": "q_conv1d", "key_conv": "k_conv1d", "value_conv": "v_conv1d",
        },
    ),
    "hgrn2": (
        "hgrn2", {"head_dim": 8, "lower_bound": 0.25}, "hgrn2", "HGRN2Attention", {"expand_ratio": 8, "layer_idx": 1},
        {"query": "q_proj", "forget": "f_proj", "value": "i_proj", "out": "o_proj", "norm": "g_norm"},
    ),
    "hgrn": (
        "hgrn", {"lower_bound": 0.25}, "hgrn", "HGRNAttention", {"layer_idx": 1},
        {"input": "i_proj", "forget": "f_proj", "gate": "g_proj", "out": "o_proj", "norm": "g_norm"},
    ),
    "gsa": (
        "gated_slot_attention", {"num_slots": 16}, "gsa", "GatedSlotAttention", {"num_slots": 16},
        {"query": "q_proj", "key": "k_proj", "value": "v_proj", "forget": "f_proj", "out": "o_proj", "norm": "g_norm"},
    ),
    "gsa, convolutions": (
        "gated_slot_attention", {"num_slots": 16, "conv_size": 4}, "gsa", "GatedSlotAttention",
        {"num_slots": 16, "use_short_conv": True},
        {
            "query": "q_proj", "key": "k_proj", "value": "v_proj", "forget": "f_proj", "out": "o_proj",
            "norm": "g_norm",
            "query_conv": "q_conv1d", "key_conv": "k_conv1d", "value_conv": "v_conv1d",
        },
    ),
    "kda": (
        "kimi_delta_attention", {}, "kda", "KimiDeltaAttention", {"head_dim": 8, "mode": "fused_recurrent"},
        {
            "query": "q_proj", "key": "k_proj", "value": "v_proj", "beta": "b_proj", "out": "o_proj", "norm": "o_norm",
            "decay.down": "f_proj.0", "decay.up": "f_proj.1", "gate.down": "g_proj.0", "gate.up": "g_proj.1",
            "A_log": "A_log", "dt_bias": "dt_bias",
            "query_conv": "q_conv1d", "key_conv": "k_conv1d", "value_conv": "v_conv1d",
        },
    ),
    "kda, safe gate": (
        "kimi_delta_attention", {"num_value_heads": 8, "negative": True, "lower_bound": -5.0}, "kda",
        "KimiDeltaAttention",
        {
            "head_dim": 8, "num_v_heads": 8, "allow_neg_eigval": True, "safe_gate": True, "lower_bound": -5.0,
            "mode": "fused_recurrent",
        },
        {
            "query": "q_proj", "key": "k_proj", "value": "v_proj", "beta": "b_proj", "out": "o_proj", "norm": "o_norm",
            "decay.down": "f_proj.0", "decay.up": "f_proj.1", "gate.down": "g_proj.0", "gate.up": "g_proj.1",
            "A_log": "A_log", "dt_bias": "dt_bias",
            "query_conv": "q_conv1d", "key_conv": "k_conv1d", "value_conv": "v_conv1d",
        },
    ),
}  # fmt: skip


def _input(length: int) -> np.ndarray:
    return seeded.generator(f"x {length}", SEED).standard_normal((BATCH, length, FEATURES)).astype(np.float32)


def _weights(made: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return seeded.weights(made, SEED)


def _theirs(name: str, names: dict[str, str]) -> str:
    """The reference's name of our parameter ``name``."""
    if name in names:
        return names[name]
    module, leaf = name.rsplit(".", 1)
    return f"{names[module]}.{'bias' if leaf == 'bias' else 'weight'}"


def _shapes(layer: Any, names: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """Shapes by the reference's names, of our layer's parameters by ours."""
    shapes = {}
    for name, value in layer.items():
        shape = tuple(value.shape)
        shapes[_theirs(name, names)] = shape[::-1] if name.endswith(".kernel") else shape
    return shapes


def load(name: str, parameters: dict[str, Any]) -> tuple[dict[str, np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
    """Weights by our names, of a layer with these ``parameters``, and inputs with recorded outputs (batch, length,
    features).
    """
    names = CASES[name][-1]
    theirs = _weights(_shapes(parameters, names))
    weights = {}
    for ours in parameters:
        value = theirs[_theirs(ours, names)]
        weights[ours] = value.T if ours.endswith(".kernel") else value
    with np.load(PATH) as file:
        return weights, [(_input(length), file[f"{name}/{length}"]) for length in LENGTHS]


def interpreted(clone: Path) -> None:
    """Makes the reference importable, its kernels interpreted."""
    os.environ["TRITON_INTERPRET"] = "1"
    sys.path.insert(0, str(clone))
    from triton.runtime.autotuner import Autotuner

    Autotuner.run = lambda self, *args, **kwargs: self.fn.run(*args, **kwargs, **self.configs[0].all_kwargs())


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    interpreted(clone)
    import importlib
    import inspect

    import torch

    made: dict[str, np.ndarray] = {}
    for name, (_, options, module, kind, theirs, names) in CASES.items():
        make = getattr(importlib.import_module(f"fla.layers.{module}"), kind)
        heads = {"num_heads": HEADS} if "num_heads" in inspect.signature(make).parameters else {}
        layer = make(hidden_size=FEATURES, **heads, **theirs).eval()
        state = layer.state_dict()
        assert {key if key in names.values() else key.rsplit(".", 1)[0] for key in state} == set(names.values())
        weights = _weights({key: tuple(value.shape) for key, value in state.items()})
        layer.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
        bound = {}
        if "lower_bound" in inspect.signature(layer.forward).parameters:
            bound["lower_bound"] = torch.full((FEATURES,), options["lower_bound"])
        for length in LENGTHS:
            with torch.no_grad():
                made[f"{name}/{length}"] = layer(torch.from_numpy(_input(length)), **bound)[0].numpy()
    return made


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))
