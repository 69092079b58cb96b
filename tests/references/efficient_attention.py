"""Records outputs of the authors' efficient attention: ``python -m tests.references.efficient_attention CLONES`` writes
efficient_attention.npz beside this file.

CLONES holds checkouts of github.com/OpenNLPLab/cosFormer (Apache-2.0), github.com/lucidrains/linformer (MIT; not the
authors', who released no code) and github.com/fla-org/flash-linear-attention (MIT), by the names of the repositories.
Of the last the plain functions of native sparse attention run, with PyTorch's attention in the window. Only numbers are
kept: weights and inputs follow from seeds.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED = 21
FEATURES, HEADS, LENGTH = 12, 3, 19
RANK, MOST = 5, 24
BLOCK, SELECTED, WINDOW, QUERY_HEADS, KEY_HEADS = 3, 4, 5, 6, 3
REPOSITORIES = {
    "cosformer": "OpenNLPLab/cosFormer",
    "linformer": "lucidrains/linformer",
    "native": "fla-org/flash-linear-attention",
}


def tokens() -> np.ndarray:
    """Two rows, (2, LENGTH, FEATURES)."""
    return seeded.generator("tokens", SEED).standard_normal((2, LENGTH, FEATURES)).astype(np.float32)


def _layers(clones: Path) -> dict[str, tuple[Any, bool]]:
    """The authors' layers by case, and whether they take the length first."""
    cosformer = recording.module_of(clones / "cosFormer" / "cosformer.py").CosformerAttention
    recording.stand_in(
        {"linformer": {}, "linformer.reversible": {"ReversibleSequence": None, "SequentialSequence": None}}
    )
    linformer = recording.module_of(clones / "linformer" / "linformer" / "linformer.py").LinformerSelfAttention
    return {
        "cosformer": (cosformer(FEATURES, HEADS), True),
        "cosformer/causal": (cosformer(FEATURES, HEADS, causal=True), True),
        "linformer": (linformer(FEATURES, MOST, k=RANK, heads=HEADS), False),
        "linformer/one": (linformer(FEATURES, MOST, k=RANK, heads=HEADS, one_kv_head=True), False),
        "native": (_native(clones), False),
    }


def _native(clones: Path) -> Any:
    """A layer of the functions of native sparse attention, with projections as in their layer."""
    import einops

    from tests.references.live import torch

    tree = ast.parse((clones / "flash-linear-attention/fla/ops/nsa/naive.py").read_text())
    names = ("naive_nsa_selection", "naive_nsa_compression", "naive_nsa_topk")
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    group = {"get_gqa_group_size": lambda heads, kv_heads: heads // kv_heads}
    found: dict[str, Any] = {"torch": torch, "repeat": einops.repeat, **group}
    exec(compile(tree, "naive.py", "exec"), found)
    width = FEATURES // QUERY_HEADS

    class Native(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"q": FEATURES, "k": KEY_HEADS * width, "v": KEY_HEADS * width, "g": 3 * QUERY_HEADS}
            for name, size in sizes.items():
                setattr(self, f"{name}_proj", torch.nn.Linear(FEATURES, size, bias=False))
            self.o_proj = torch.nn.Linear(FEATURES, FEATURES, bias=False)

        def forward(self, x: Any) -> Any:
            q, k, v = (getattr(self, f"{name}_proj")(x).unflatten(-1, (-1, width)) for name in "qkv")
            gates = self.g_proj(x).unflatten(-1, (QUERY_HEADS, 3)).sigmoid().unsqueeze(-1)
            blocks = torch.arange(LENGTH) // BLOCK
            count = torch.bincount(blocks)
            means = [torch.zeros(2, len(count), KEY_HEADS, width).index_add(1, blocks, a) for a in (k, v)]
            means = [a / count[:, None, None] for a in means]
            own = {"block_size": BLOCK, "scale": width**-0.5}
            far = found["naive_nsa_compression"](q, *means, **own)[0]
            chosen = found["naive_nsa_topk"](q, means[0], SELECTED, **own)
            wide = [a.repeat_interleave(QUERY_HEADS // KEY_HEADS, 2) for a in (k, v)]
            apart = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
            seen = (apart >= 0) & (apart < WINDOW)
            heads = (a.transpose(1, 2) for a in (q, *wide))
            near = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=seen).transpose(1, 2)
            # Theirs writes row by row, in place; queries that select fewer blocks have -1 there.
            picked = found["naive_nsa_selection"](q, k, v, chosen, **own)
            y = gates[..., 0, :] * far + gates[..., 1, :] * picked + gates[..., 2, :] * near
            return self.o_proj(y.flatten(2))

    return Native()


def record(clones: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name: outputs, and gradients of the sum of their sines for the input."""
    from tests.references.live import torch

    arrays: dict[str, np.ndarray] = {}
    shapes: dict[str, Any] = {}
    for case, (layer, length_first) in _layers(clones).items():
        shapes[case] = recording.give_weights(layer, SEED)
        x = torch.from_numpy(tokens()).requires_grad_()
        out = layer(x.transpose(0, 1)).transpose(0, 1) if length_first else layer(x)
        torch.sin(out).sum().backward()
        arrays |= recording.under(case, {"out": out.detach().numpy(), "gradient": x.grad.numpy()})
    named = {
        kind: f"github.com/{name} {recording.commit(clones / name.split('/')[1])[:8]}"
        for kind, name in REPOSITORIES.items()
    }
    return arrays | {"about": np.array(json.dumps({"shapes": shapes, "torch": torch.__version__, **named}))}


if __name__ == "__main__":
    recording.write(PATH, record)
