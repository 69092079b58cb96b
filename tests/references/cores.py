"""Records outputs of the authors' attention cores: ``python -m tests.references.cores CLONES`` writes cores.npz beside
this file.

CLONES holds checkouts of github.com/LeapLabTHU/Agent-Attention and github.com/LeapLabTHU/InLine (no license: run only)
and github.com/idiap/fast-transformers (MIT), by the names of the repositories. Only numbers are kept: weights and
inputs follow from seeds. Agent and InLine attention are recorded in narrow and shallow models of the authors' DeiT,
Swin and CSWin, of which some blocks have windows, stripes or plain attention, and InLine attention with a feature map
as a layer; of fast-transformers linear attention, its recurrent form, and that of positive random features.
"""

from __future__ import annotations

import ast
import functools
import importlib
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED = 15
FEATURES, HEADS, SIDE, AGENTS = 12, 3, 9, 4
HEAD_DIM, ROWS, RANDOM = 4, (11, 7), 6

_DEIT: dict[str, Any] = {
    "img_size": 64,
    "patch_size": 8,
    "embed_dim": FEATURES,
    "depth": 2,
    "num_heads": HEADS,
    "num_classes": 10,
}
# Windows of 7x7 tokens are moved on a map of 14x14 in the last block of Swin.
_SWIN: dict[str, Any] = {
    "img_size": 112, "embed_dim": FEATURES, "depths": [1, 2], "num_heads": [HEADS, 2 * HEADS], "window_size": 56,
    "num_classes": 10
}  # fmt: skip
# Stripes of 2 tokens in the third stage.
_CSWIN: dict[str, Any] = {
    "img_size": 64, "embed_dim": FEATURES, "depth": [1] * 4, "split_size": [1, 2, 2, 2], "num_classes": 10,
    "la_split_size": "16-8-4-2", "num_heads": [HEADS, 2 * HEADS, 2 * HEADS, 2 * HEADS]
}  # fmt: skip
# The authors' models by repository, files below its folder of models, class and options.
MODELS: dict[str, tuple[str, tuple[str, ...], str, dict[str, Any]]] = {
    "agent/deit": (
        "Agent-Attention",
        ("deit", "agent_deit"),
        "VisionTransformer",
        _DEIT | {"agent_num": [AGENTS] * 4, "agent_layer": 1},
    ),
    "agent/swin": (
        "Agent-Attention",
        ("agent_swin",),
        "AgentSwinTransformer",
        _SWIN | {"agent_num": [AGENTS] * 2, "attn_type": "AM1"},
    ),
    "agent/cswin": (
        "Agent-Attention",
        ("agent_cswin",),
        "CSWinTransformer",
        _CSWIN | {"agent_num": [AGENTS] * 4, "attn_type": "AABB"},
    ),
    "inline/deit": ("InLine", ("inline_deit",), "VisionTransformer", _DEIT),
    "inline/swin": ("InLine", ("inline_swin",), "InLineSwin", _SWIN | {"attn_type": "IM1"}),
    "inline/cswin": ("InLine", ("inline_cswin",), "CSWinTransformer", _CSWIN | {"attn_type": "IISS"}),
}
IMAGES = {name: (2, model[3]["img_size"], model[3]["img_size"], 3) for name, model in MODELS.items()}
KEPT = {"gradient": np.s_[:, ::4, 1::4]}
FOLDERS = {"Agent-Attention": "agent_transformer/models", "InLine": "models"}


def tokens() -> np.ndarray:
    """Two maps of tokens, (2, length, features)."""
    return seeded.generator("tokens", SEED).standard_normal((2, SIDE * SIDE, FEATURES)).astype(np.float32)


def heads() -> dict[str, np.ndarray]:
    """Queries, keys and values (2, length, heads, head_dim), and half of the projection of random features (head_dim,
    RANDOM).
    """
    rng = seeded.generator("heads", SEED)
    shapes = dict.fromkeys("qkv", (2, max(ROWS), HEADS, HEAD_DIM)) | {"omega": (HEAD_DIM, RANDOM)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _module(paths: list[Path]) -> dict[str, Any]:
    """The classes and functions of files, without imports besides PyTorch, and without the registered models."""
    from einops.layers.torch import Rearrange

    from tests.references.live import timm, torch

    given = {
        "np": np,
        "Rearrange": Rearrange,
        "torch": torch,
        "nn": torch.nn,
        "F": torch.nn.functional,
        "math": math,
        "partial": functools.partial,
    }
    parts = ("DropPath", "Mlp", "PatchEmbed", "lecun_normal_", "to_2tuple", "trunc_normal_")
    found = given | {part: getattr(timm.layers, part) for part in parts}
    for path in paths:
        tree = ast.parse(path.read_text())
        kept = (node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef))
        tree.body = [
            node
            for node in kept
            if not any(isinstance(d, ast.Name) and d.id == "register_model" for d in node.decorator_list)
        ]
        exec(compile(tree, str(path), "exec"), found)
    return found


def published(clone: Path, name: str) -> Any:
    """The authors' published model, of its least size, that ours of this name is."""
    start, kind = name.split("_")[:2]
    agents = {"agent_num": [49] * 4 if kind == "deit" else [9, 16, 49, 49]} if start == "agent" else {}
    options: dict[str, Any] = {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3 if agents else 6}
    if kind == "cswin":
        options = {"patch_size": 4, "embed_dim": 64, "depth": [2, 4, 18, 1], "split_size": [1, 2, 7, 7]}
        options |= {"num_heads": [2, 4, 8, 16], "attn_type": "AABB" if agents else "IISS"}
        options |= {"la_split_size": "56-28-14-7"}
    repository, files, build, _ = MODELS[f"{start}/{kind}"]
    found = _module([clone / FOLDERS[repository] / f"{file}.py" for file in files])
    return found[build](**options, **agents)


def _models(clones: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Adds outputs of the authors' models and of a layer, and gradients of the sum of their sines; returns the shapes
    of their parameters.
    """
    from tests.references.live import torch

    shapes: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, (repository, files, kind, options) in MODELS.items():
        found[name] = _module([clones / repository / FOLDERS[repository] / f"{file}.py" for file in files])
        model = found[name][kind](**options)
        shapes[name] = recording.give_weights(model, SEED, leave=("relative_position_index", "attn_mask"))
        made = recording.outputs(model, [], seeded.images(IMAGES[name], SEED), KEPT)
        arrays |= {f"{name}/out": made["logits"], f"{name}/gradient": made["gradient"]}  # as a layer's
    layer = found["inline/swin"]["InLineAttention"](FEATURES, (SIDE, SIDE), HEADS, kernel_func="relu")
    shapes["inline/relu"] = recording.give_weights(layer, SEED)
    x = torch.from_numpy(tokens()).requires_grad_()
    out = layer(x)
    torch.sin(out).sum().backward()
    arrays["inline/relu/out"], arrays["inline/relu/gradient"] = out.detach().numpy(), x.grad.numpy()
    return shapes


def _linear(clones: Path, arrays: dict[str, np.ndarray]) -> None:
    """Adds outputs of fast-transformers' linear attention, whose compiled parts are left out."""
    from tests.references.live import torch

    for package in ("", ".attention", ".recurrent", ".recurrent.attention", ".recurrent.attention.self_attention"):
        name = f"fast_transformers{package}"
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(clones / "fast-transformers" / name.replace(".", "/"))]
    whole = importlib.import_module("fast_transformers.attention.linear_attention")
    steps = importlib.import_module("fast_transformers.recurrent.attention.self_attention.linear_attention")
    masking = importlib.import_module("fast_transformers.masking")
    maps = importlib.import_module("fast_transformers.feature_maps")
    given = {name: torch.from_numpy(array) for name, array in heads().items()}
    q, k, v = (given[name] for name in "qkv")
    everything, rows = masking.FullMask(max(ROWS)), masking.LengthMask(torch.tensor(ROWS))
    elu = whole.LinearAttention(HEAD_DIM)
    arrays["linear/bidirectional"] = elu(q, k, v, everything, rows, rows).numpy()
    recurrent, state, out = steps.RecurrentLinearAttention(HEAD_DIM), None, []
    for t in range(max(ROWS)):
        y, state = recurrent(q[:, t], k[:, t], v[:, t], state)
        out.append(y.numpy().copy())
    arrays["linear/causal"] = np.stack(out, 1)
    random = whole.LinearAttention(HEAD_DIM, maps.Favor.factory(n_dims=2 * RANDOM, deterministic_eval=True))
    random.eval()
    random.feature_map.omega = given["omega"]
    arrays["linear/random"] = random(q, k, v, everything, rows, rows).numpy()


def record(clones: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import torch

    arrays: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {"shapes": _models(clones, arrays), "torch": torch.__version__}
    _linear(clones, arrays)
    for owner, name in (("LeapLabTHU", "Agent-Attention"), ("LeapLabTHU", "InLine"), ("idiap", "fast-transformers")):
        about[name] = f"github.com/{owner}/{name} {recording.commit(clones / name)[:8]}"
    return {**arrays, "about": np.array(json.dumps(about))}


if __name__ == "__main__":
    recording.write(PATH, record)
