"""Records logits and gradients of authors' language models: ``python -m tests.references.recurrent_models NAME CLONE``
adds one to the .npz beside this file.

CLONE is a checkout of the repository that the model's function names. Only numbers are kept: weights and tokens follow
from a seed, and gradients are those of the sum of sin(logits).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, BATCH, LENGTH, VOCABULARY, FEATURES, DEPTH, HEADS = 5, 2, 21, 11, 16, 2, 2


def tokens() -> np.ndarray:
    """int32 (batch, length)."""
    return seeded.generator("tokens", SEED).integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A state dict by the reference's names."""
    return seeded.weights(shapes, SEED)


def load(name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The recorded logits (batch, length, vocabulary), and gradients by the reference's names."""
    with np.load(PATH) as file:
        own = {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}
    return own.pop("logits"), own


def rwkv7(clone: Path) -> Any:
    """BlinkDL/RWKV-LM (Apache-2.0), commit 524481d: its slow form, in float32, whose norm of heads has the epsilon of
    smaller heads.
    """
    import torch

    source = (clone / "RWKV-v7/rwkv_v7_demo.py").read_text().split("# RWKV Inference")[0]
    changes = {
        "USE_CUDA_KERNEL = True": "USE_CUDA_KERNEL = False",
        "DTYPE = torch.half": "DTYPE = torch.float",
        "torch.jit.ScriptModule": "nn.Module",
        "torch.jit.script_method": "(lambda f: f)",
        "args.head_size_a = 64": f"args.head_size_a = {FEATURES // HEADS}",
        "args.n_layer = 12": f"args.n_layer = {DEPTH}",
        "args.n_embd = 768": f"args.n_embd = {FEATURES}",
        "args.vocab_size = 65536": f"args.vocab_size = {VOCABULARY}",
        'tokenizer = RWKV_TOKENIZER("rwkv_vocab_v20230424.txt")': "",
    }
    for before, after in changes.items():
        assert before in source
        source = source.replace(before, after)
    for name, rank in RANKS.items():
        source = re.sub(rf"D_{name}_LORA = \d+", f"D_{name}_LORA = {rank}", source)
    space: dict[str, Any] = {}
    exec(source, space)
    model = space["RWKV"](space["args"])
    for index, block in enumerate(model.blocks):
        block.att.ln_x.eps = 1e-5 * (FEATURES // HEADS)
        if index:
            del block.ln0
        else:
            for name in ("v0", "v1", "v2"):
                delattr(block.att, name)
                setattr(block.att, name, torch.zeros(()))
    return model


RANKS = {"DECAY": 3, "AAA": 4, "MV": 5, "GATE": 6}
RECORDED: dict[str, Callable[[Path], Any]] = {"rwkv7": rwkv7}


def record(name: str, clone: Path) -> dict[str, np.ndarray]:
    """The recorded arrays of one model by name."""
    import torch

    model = RECORDED[name](clone)
    parameters = dict(model.named_parameters())
    given = weights({key: tuple(value.shape) for key, value in parameters.items()})
    with torch.no_grad():
        for key, value in parameters.items():
            value.copy_(torch.from_numpy(given[key]))
    logits = model(torch.from_numpy(tokens()).long())
    logits = getattr(logits, "logits", logits)
    torch.sin(logits).sum().backward()
    made = {key: value.grad.numpy() for key, value in parameters.items()}
    return {f"{name}/{key}": value for key, value in {"logits": logits.detach().numpy(), **made}.items()}


if __name__ == "__main__":
    before = dict(np.load(PATH)) if PATH.exists() else {}
    np.savez_compressed(PATH, **before | record(sys.argv[1], Path(sys.argv[2])))
