"""Records outputs of attention whose scores fall: ``python -m tests.references.penalties CLONES`` writes penalties.npz
beside this file.

CLONES holds checkouts of github.com/fla-org/flash-linear-attention (MIT, commit bc3b101d), github.com/qhfan/RMT (no
license: run only, commit 32ea2141) and github.com/GreenCUBIC/lookhere (MIT, commit 641deab8), by the names of the
repositories. Only numbers are kept: weights and inputs follow from seeds. Recorded are the plain form of forgetting
attention, both forms of RMT's retention of a map as layers with the gradient of the input, and the penalties of
LookHere's heads before they are rounded to bfloat16, infinite outside the fields.
"""

from __future__ import annotations

import ast
import math
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, BATCH, FEATURES, HEADS, KV_HEADS = 9, 2, 24, 4, 2
LENGTH, WINDOW = 19, 6
GRID, RANGE = (4, 6), 6
# Names of the fields of LookHere's heads, joined as in its configurations, and how many heads there are.
VIEWS = {"halves-corners": 12, "triangles-none": 12, "diagonals-eighths1": 12, "eighths2": 8}
# The authors' names of the layer's parts, by ours.
NAMES = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj", "enhancement": "lepe.conv"}


def inputs() -> dict[str, np.ndarray]:
    """Queries, keys, values and the logarithms of forget gates, and a map of tokens."""
    rng = seeded.generator("inputs", SEED)
    dim = FEATURES // HEADS
    shapes = {"q": (HEADS, dim), "k": (KV_HEADS, dim), "v": (KV_HEADS, dim), "g": (HEADS,)}
    made = {name: rng.standard_normal((BATCH, LENGTH, *shape)).astype(np.float32) for name, shape in shapes.items()}
    made["g"] = -np.logaddexp(0, -2 * made["g"])
    return made | {"map": rng.standard_normal((BATCH, *GRID, FEATURES)).astype(np.float32)}


def weights() -> dict[str, np.ndarray]:
    """The layer's parameters by the authors' names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in NAMES.values():
        shape = (FEATURES, 1, 5, 5) if "conv" in name else (FEATURES, FEATURES)
        shapes |= {f"{name}.weight": shape, f"{name}.bias": (FEATURES,)}
    return seeded.weights(shapes, SEED)


def _parts(path: Path, given: dict[str, Any], *names: str) -> dict[str, Any]:
    """Some classes and functions of a file, without what it imports."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
    found = dict(given)
    exec(compile(tree, str(path), "exec"), found)
    return found


def record(clones: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    import scipy.spatial.distance
    import torch
    from einops import rearrange, repeat

    made: dict[str, np.ndarray] = {}
    arrays = {name: torch.from_numpy(x) for name, x in inputs().items()}
    given: dict[str, Any] = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "np": np, "math": math}
    fla = clones / "flash-linear-attention" / "fla" / "ops" / "forgetting_attn" / "naive.py"
    forgetting = _parts(
        fla,
        given | {"rearrange": rearrange, "repeat": repeat, "get_gqa_group_size": lambda q, k: q // k},
        "naive_forgetting_attn",
    )["naive_forgetting_attn"]
    for window in (None, WINDOW):
        made[f"forgetting/{window}"] = forgetting(*(arrays[n] for n in "qkvg"), window_size=window).numpy()

    rmt = _parts(
        clones / "RMT" / "classfication_release" / "RMT.py",
        given | {"Tuple": tuple},
        *(
            "rotate_every_two",
            "theta_shift",
            "DWConv2d",
            "RetNetRelPos2d",
            "VisionRetentionChunk",
            "VisionRetentionAll",
        ),
    )
    places = rmt["RetNetRelPos2d"](FEATURES, HEADS, 2, RANGE)
    for name, kind, chunked in (("whole", "VisionRetentionAll", False), ("decomposed", "VisionRetentionChunk", True)):
        layer = rmt[kind](FEATURES, HEADS)
        layer.load_state_dict({key: torch.from_numpy(value) for key, value in weights().items()})
        x = arrays["map"].clone().requires_grad_()
        out = layer(x, places(GRID, chunkwise_recurrent=chunked))
        torch.sin(out).sum().backward()
        made[f"manhattan/{name}/out"], made[f"manhattan/{name}/gradient"] = out.detach().numpy(), x.grad.numpy()

    distance = scipy.spatial.distance
    given |= {"groupby": groupby, "cdist": distance.cdist, "pdist": distance.pdist, "squareform": distance.squareform}
    names = ("get_none_slopes", "get_slopes", "create_lh_layer_tensor")
    tensor = _parts(clones / "lookhere" / "lookhere.py", given, *names)["create_lh_layer_tensor"]
    for view, heads in VIEWS.items():
        made[f"lookhere/{view}"] = tensor(GRID, view, heads, "linear", "inf").astype(np.float32)
    return made


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))
