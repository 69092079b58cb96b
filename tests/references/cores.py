"""Records outputs of the authors' attention cores: ``python -m tests.references.cores CLONES`` writes cores.npz beside this file.

CLONES holds checkouts of github.com/LeapLabTHU/Agent-Attention and github.com/LeapLabTHU/InLine (no license: run only)
and github.com/idiap/fast-transformers (MIT), by the names of the repositories. Only numbers are kept: weights and inputs
follow from seeds. Agent and InLine are the layers of their DeiT and Swin; of fast-transformers linear attention,
its recurrent form, and positive random features are recorded.
"""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import seeded

PATH = Path(__file__).with_suffix(".npz")
SEED = 15
FEATURES, HEADS, SIDE, AGENTS = 12, 3, 9, 4
HEAD_DIM, ROWS, RANDOM = 4, (11, 7), 6

# The authors' layers by repository, file, class and what else makes them; with a class token before the map where it is DeiT's.
LAYERS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "agent/deit": ("Agent-Attention", "agent_transformer/models/agent_deit.py", "AgentAttention", {"window": SIDE}),
    "agent/swin": ("Agent-Attention", "agent_transformer/models/agent_swin.py", "AgentAttention", {"window_size": (SIDE, SIDE)}),
    "inline/deit": ("InLine", "models/inline_deit.py", "InLineAttention", {"window": SIDE}),
    "inline/swin": ("InLine", "models/inline_swin.py", "InLineAttention", {"window_size": (SIDE, SIDE)}),
    "inline/relu": ("InLine", "models/inline_swin.py", "InLineAttention", {"window_size": (SIDE, SIDE), "kernel_func": "relu"}),
}


def tokens(name: str) -> np.ndarray:
    """Two images of tokens, (2, length, features)."""
    length = SIDE * SIDE + name.endswith("deit")
    return seeded.generator(name, SEED).standard_normal((2, length, FEATURES)).astype(np.float32)


def heads() -> dict[str, np.ndarray]:
    """Queries, keys and values (2, length, heads, head_dim), and half of the projection of random features (head_dim, RANDOM)."""
    rng = seeded.generator("heads", SEED)
    shapes = dict.fromkeys("qkv", (2, max(ROWS), HEADS, HEAD_DIM)) | {"omega": (HEAD_DIM, RANDOM)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _class(path: Path, name: str, known: dict[str, Any]) -> Any:
    """A class of a file, without the rest of it and what that imports."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    found = dict(known)
    exec(compile(tree, str(path), "exec"), found)  # the authors' own class
    return found[name]


def _layers(clones: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Adds outputs of the authors' layers and gradients of the sum of their sines; returns the shapes of their parameters."""
    from tests.references.live import torch

    shapes: dict[str, Any] = {}
    known = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "trunc_normal_": torch.nn.init.trunc_normal_}
    for name, (repository, file, kind, options) in LAYERS.items():
        agents = {"agent_num": AGENTS} if kind == "AgentAttention" else {}
        layer = _class(clones / repository / file, kind, known)(dim=FEATURES, num_heads=HEADS, qkv_bias=True, **options, **agents)
        shapes[name] = {n: tuple(value.shape) for n, value in layer.state_dict().items()}
        layer.load_state_dict({n: torch.from_numpy(a) for n, a in seeded.weights(shapes[name], SEED).items()})
        x = torch.from_numpy(tokens(name)).requires_grad_()
        out = layer(x)
        torch.sin(out).sum().backward()
        arrays[f"{name}/out"], arrays[f"{name}/gradient"] = out.detach().numpy(), x.grad.numpy()
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
    about: dict[str, Any] = {"shapes": _layers(clones, arrays), "torch": torch.__version__}
    _linear(clones, arrays)
    for owner, name in (("LeapLabTHU", "Agent-Attention"), ("LeapLabTHU", "InLine"), ("idiap", "fast-transformers")):
        git = ["git", "-C", str(clones / name), "rev-parse", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
        about[name] = f"github.com/{owner}/{name} {commit[:8]}"
    return {**arrays, "about": np.array(json.dumps(about))}


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))  # type: ignore[arg-type]
    print(f"{PATH}: {PATH.stat().st_size} bytes")
