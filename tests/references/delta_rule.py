"""Records outputs of flash-linear-attention's delta rules: ``python -m tests.references.delta_rule CLONE`` writes
delta_rule.npz beside this file.

CLONE is a checkout of github.com/fla-org/flash-linear-attention (MIT), of which the plain PyTorch recurrences are run,
each in its own layout. Only numbers are kept: the inputs follow from a seed.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import seeded

PATH = Path(__file__).with_suffix(".npz")
SEED = 4
BATCH, LENGTH, HEADS, KEY, VALUE = 2, 45, 3, 8, 6
# Steps a token, and whether the memory decays.
CASES: dict[str, tuple[int, bool]] = {
    "delta_rule": (1, False),
    "gated_delta_rule": (1, True),
    "gated_delta_product": (3, True),
    "kda": (1, True),  # a decay for each key
    "comba": (1, True),  # a key of its own to read under
}


def inputs(name: str) -> dict[str, np.ndarray]:
    """The op's arrays, time before heads: keys of norm 1, beta in (0, 2) where there are several steps and in (0, 1)
    elsewhere.
    """
    steps, gated = CASES[name]
    rng = seeded.generator(name, SEED)
    k = rng.standard_normal((BATCH, LENGTH * steps, HEADS, KEY))
    arrays = {
        "q": rng.standard_normal((BATCH, LENGTH, HEADS, KEY)),
        "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": rng.standard_normal((BATCH, LENGTH * steps, HEADS, VALUE)),
        "beta": (2 if steps > 1 else 1) * rng.random((BATCH, LENGTH * steps, HEADS)),
        "initial_state": rng.standard_normal((BATCH, HEADS, KEY, VALUE)),
    }
    if gated:
        arrays["decay"] = -0.3 * rng.exponential(size=(BATCH, LENGTH, HEADS, *((KEY,) if name == "kda" else ())))
    if name == "comba":
        arrays["read_key"] = 0.8 * arrays["k"] + 0.1 * rng.standard_normal(arrays["k"].shape)
    return {n: x.astype(np.float32) for n, x in arrays.items()}


def load(name: str) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Inputs, recorded outputs (batch, length, heads, value_dim), and the recorded last state."""
    with np.load(PATH) as file:
        return inputs(name), file[f"{name}/out"], file[f"{name}/state"]


def _recurrences(clone: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, clone / "fla" / "ops" / name / "naive.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    import torch

    made: dict[str, np.ndarray] = {}
    for name in CASES:
        module, arrays = _recurrences(clone, name), {n: torch.from_numpy(x) for n, x in inputs(name).items()}
        q, k, v, beta, start, g = (arrays.get(n) for n in ("q", "k", "v", "beta", "initial_state", "decay"))
        if name == "delta_rule":  # heads before time
            out, state = module.delta_rule_recurrence(
                *(x.transpose(1, 2) for x in (q, k, v, beta)), initial_state=start
            )
            out = out.transpose(1, 2)
        elif name == "gated_delta_rule":
            out, state = module.naive_recurrent_gated_delta_rule(
                q, k, v, beta, g, initial_state=start, output_final_state=True
            )
        elif name == "kda":
            out, state = module.naive_recurrent_kda(q, k, v, g, beta, initial_state=start, output_final_state=True)
        elif name == "comba":
            p = arrays["read_key"]
            out, state = module.naive_recurrent_comba(q, k, v, p, beta, g, None, start, True)
        else:  # its scale is not applied
            scaled = q * KEY**-0.5
            out, state = module.naive_recurrent_gated_delta_product(
                scaled, k, v, g, beta, 1.0, None, start, True, num_householder=CASES[name][0]
            )
        made[f"{name}/out"], made[f"{name}/state"] = out.numpy(), state.numpy()
    return made


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))
