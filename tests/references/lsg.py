"""Records outputs of the authors' LSG attention: ``python -m tests.references.lsg CLONE`` writes lsg.npz beside this
file.

CLONE is a checkout of github.com/ccdv-ai/convert_checkpoint_to_lsg (MIT). The attention layers of their RoBERTa are run
apart from the model, which is written for an older transformers. Only numbers are kept: weights and inputs follow from
seeds.
"""

from __future__ import annotations

import ast
import types
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED = 22
FEATURES, HEADS, GLOBAL = 12, 3, 2
LENGTH, REAL = 32, (32, 21)
FILE = "lsg_converter/roberta/modeling_lsg_roberta.py"
CLASSES = (
    "BaseSelfAttention",
    "BaseAttentionProduct",
    "CausalAttentionProduct",
    "LSGAttentionProduct",
    "LSGSelfAttention",
)
# Their kind of sparse tokens, block, sparse block and factor; of the last all tokens attend to all.
CASES = {
    "norm": ("norm", 4, 4, 2),
    "norm, narrow": ("norm", 8, 4, 2),
    "pooling": ("pooling", 4, 4, 2),
    "bos_pooling": ("bos_pooling", 8, 8, 4),
    "stride": ("stride", 4, 4, 2),
    "block_stride": ("block_stride", 4, 4, 2),
    "none": ("none", 4, 4, 2),
    "short": ("norm", 16, 16, 2),
}


def tokens() -> np.ndarray:
    """Two rows of global and other tokens, (2, GLOBAL + LENGTH, FEATURES)."""
    return seeded.generator("tokens", SEED).standard_normal((2, GLOBAL + LENGTH, FEATURES)).astype(np.float32)


def mask() -> np.ndarray:
    """Real tokens (2, GLOBAL + LENGTH), the second row padded."""
    return np.arange(GLOBAL + LENGTH) < GLOBAL + np.array(REAL)[:, None]


def _layer(clone: Path) -> Any:
    import math

    from tests.references.live import torch

    tree = ast.parse((clone / FILE).read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in CLASSES]
    found: dict[str, Any] = {"torch": torch, "nn": torch.nn, "math": math}
    exec(compile(tree, FILE, "exec"), found)
    return found["LSGSelfAttention"]


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name: outputs of real tokens, and gradients of the sum of their sines for the input."""
    from tests.references.live import torch

    layer, arrays, shapes = _layer(clone), dict[str, np.ndarray](), {}
    for case, (kind, block, sparse, factor) in CASES.items():
        config = types.SimpleNamespace(
            hidden_size=FEATURES,
            num_attention_heads=HEADS,
            attention_probs_dropout_prob=0.0,
            block_size=block,
            sparse_block_size=sparse,
            sparsity_factor=factor,
            sparsity_type=kind,
            num_global_tokens=GLOBAL,
            is_decoder=False,
        )
        made = layer(config)
        shapes = recording.give_weights(made, SEED)
        x = torch.from_numpy(tokens()).requires_grad_()
        real = torch.from_numpy(mask()[:, GLOBAL:])
        bias = torch.where(real, 0.0, torch.finfo(torch.float32).min)[:, None, None]
        out = made(x, bias)[0]
        torch.sin(out[torch.from_numpy(mask())]).sum().backward()
        arrays |= recording.under(case, {"out": out.detach().numpy()[mask()], "gradient": x.grad.numpy()})
    return arrays | recording.about("github.com/ccdv-ai/convert_checkpoint_to_lsg", clone, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
