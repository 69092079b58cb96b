"""Records outputs of three authors' layers: ``python -m tests.references.weighted_scores CLONES`` writes
weighted_scores.npz beside this file.

CLONES holds checkouts of github.com/hermansh-id/rcmha (Apache-2.0, commit 87df49bf),
github.com/gioannides/Gaussian-Adaptive-Attention (Apache-2.0, commit 145d1bc8) and
github.com/lamm-mit/Graph-Aware-Transformers (Apache-2.0, commit fb2c6ef), by the names of the repositories. Only
numbers are kept: weights and inputs follow from seeds. Recorded are relative convolutional attention, graph isomorphism
attention with plain and with softplus edges, and multi-head Gaussian adaptive attention over the length and over the
features, each with the gradient of the input.
"""

from __future__ import annotations

import ast
import importlib
import math
import sys
import types
from collections.abc import Collection
from pathlib import Path
from typing import Any, Optional

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, BATCH, FEATURES, HEADS, LENGTH, GAUSSIANS = 20, 2, 12, 3, 23, 3
SPAN = 4096  # distances that the authors' relative attention has keys for
EDGES = {"softmax": "none", "softplus": "softplus"}  # the authors' names of how edges are made of attention
AXES = {"length": 1, "features": 2}


def tokens() -> np.ndarray:
    """(BATCH, LENGTH, FEATURES)."""
    return seeded.generator("tokens", SEED).standard_normal((BATCH, LENGTH, FEATURES)).astype(np.float32)


def weights() -> dict[str, np.ndarray]:
    """Of relative convolutional attention, by the authors' names."""
    width = FEATURES // HEADS
    shapes: dict[str, tuple[int, ...]] = {"output.weight": (FEATURES, FEATURES), "output.bias": (FEATURES,)}
    for part in ("query", "key", "value"):
        shapes[f"{part}.0.linear.weight"] = (FEATURES, FEATURES)
        shapes |= {f"{part}.1.conv.weight": (width, 1, 3), f"{part}.1.conv.bias": (width,)}
    shapes |= {"value.0.linear.bias": (FEATURES,), "query_pos_bias": (HEADS, width)}
    shapes |= {"key_pos_embeddings": (2 * SPAN, HEADS, width), "key_pos_bias": (2 * SPAN, HEADS)}
    return seeded.weights(shapes, SEED)


def graph() -> dict[str, np.ndarray]:
    """Of graph isomorphism attention, by the authors' names."""
    width = FEATURES // HEADS
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys((f"{name}_proj.weight" for name in "qko"), (FEATURES, FEATURES))
    for i in range(HEADS):
        layer = f"gin_layers.{i}"
        shapes |= {f"{layer}.mlp.0.weight": (2 * width, width), f"{layer}.mlp.0.bias": (2 * width,)}
        shapes |= {f"{layer}.mlp.4.weight": (width, 2 * width), f"{layer}.mlp.4.bias": (width,)}
        shapes |= {f"{layer}.normlayer.weight": (2 * width,), f"{layer}.epsilon": ()}
    return seeded.weights(shapes, SEED)


def mixtures() -> dict[str, np.ndarray]:
    """Offsets and widths (HEADS, GAUSSIANS) of Gaussian adaptive attention."""
    rng = seeded.generator("mixtures", SEED)
    made = {"offset": rng.standard_normal((HEADS, GAUSSIANS)), "width": np.exp(rng.standard_normal((HEADS, GAUSSIANS)))}
    return {name: array.astype(np.float32) for name, array in made.items()}


def classes(path: Path, given: dict[str, Any], names: Collection[str] | None = None) -> dict[str, Any]:
    """The classes and functions of a file, or those of ``names``, without what it imports."""
    tree = ast.parse(path.read_text())
    kept = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    tree.body = [node for node in kept if names is None or node.name in names]
    found = dict(given)
    exec(compile(tree, str(path), "exec"), found)
    return found


def record(clones: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import torch

    # After PyTorch, whose vision operators transformers looks for.
    modeling_llama = importlib.import_module("transformers.models.llama.modeling_llama")
    silent = types.SimpleNamespace(debug=lambda *_: None)
    given: dict[str, Any] = {"torch": torch, "nn": torch.nn, "math": math, "tracker": silent, "Module": torch.nn.Module}
    given |= {"Optional": Optional, "List": list}  # of annotations
    made: dict[str, np.ndarray] = {}

    def keep(name: str, call: Any) -> None:
        made.update(recording.output_and_gradient(name, call, tokens()))

    folder = clones / "rcmha" / "rcmha"
    found = classes(folder / "attention.py", given | classes(folder / "util.py", given))
    layer = found["RelativeMultiHeadAttention"](HEADS, FEATURES).eval()
    layer.load_state_dict({name: torch.from_numpy(array) for name, array in weights().items()})
    seen = torch.tril(torch.ones(LENGTH, LENGTH))[..., None]

    def attend(x: Any) -> Any:
        x = x.transpose(0, 1)
        return layer(query=x, key=x, value=x, mask=seen).transpose(0, 1)

    keep("rcmha", attend)
    names = ("LlamaRMSNorm", "LlamaRotaryEmbedding", "apply_rotary_pos_emb", "repeat_kv")
    llama = {name: getattr(modeling_llama, name) for name in names} | {"F": torch.nn.functional}
    path = clones / "Graph-Aware-Transformers" / "src" / "xgpt" / "Attention_GNN.py"
    kind = classes(path, given | llama)["LlamaAttentionGIN"]
    for name, mode in EDGES.items():
        about = {"GIN_use_softmax": True, "use_scoring_fnct": False, "GIN_threshold_mode": mode}
        config = modeling_llama.LlamaConfig(
            hidden_size=FEATURES, num_attention_heads=HEADS, num_key_value_heads=HEADS, rms_norm_eps=1e-6
        )
        config.gnn_config = types.SimpleNamespace(
            plot_for_debugging=False, **{f"attention_GIN_MLP_{name}": value for name, value in about.items()}
        )
        attention = kind(config, layer_idx=0).eval()
        state = {n: torch.from_numpy(np.asarray(a)) for n, a in graph().items()}
        missing = attention.load_state_dict(state, strict=False)
        assert not missing.unexpected_keys
        width = FEATURES // HEADS
        still = torch.ones(1, LENGTH, width), torch.zeros(1, LENGTH, width)  # no rotation
        keep(name, lambda x, a=attention, still=still: a(x, position_embeddings=still)[0])
    path = clones / "Gaussian-Adaptive-Attention" / "gaussian_adaptive_attention" / "GaussianBlock.py"
    gaussian = classes(path, given)["MultiHeadGaussianAdaptiveAttention"]
    for name, axis in AXES.items():
        block = gaussian(axis, HEADS, GAUSSIANS)
        state = {
            f"attention_heads.{i}.{theirs}": torch.from_numpy(mixtures()[ours][i])
            for i in range(HEADS)
            for theirs, ours in (("mean_offsets", "offset"), ("c", "width"))
        }
        block.load_state_dict(state)
        keep(name, block)
    return made


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))
