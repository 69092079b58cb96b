"""Records outputs of torchscale's LongViT: ``python -m tests.references.longvit CLONE`` writes longvit.npz beside this
file.

CLONE is a checkout of github.com/microsoft/torchscale (MIT), commit 4d1e0e82; its classifier of examples/longvit is run
with an attention of PyTorch in place of its GPU kernel. Only numbers are kept: weights and images follow from a seed.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import seeded
from tests.references.longnet import install_attention

PATH = Path(__file__).with_suffix(".npz")
SEED, IMAGE, PATCH, FEATURES, DEPTH, HEADS, CLASSES = 6, 64, 8, 48, 2, 16, 40


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of their state dict."""
    found: dict[str, tuple[int, ...]] = {
        "model.pos_embed": (1, (IMAGE // PATCH) ** 2, FEATURES),
        "model.patch_embed.proj.weight": (FEATURES, 3, PATCH, PATCH),
        "model.patch_embed.proj.bias": (FEATURES,),
        "fc_norm.weight": (FEATURES,), "fc_norm.bias": (FEATURES,), "head.weight": (CLASSES, FEATURES),
        "head.bias": (CLASSES,),
    }  # fmt: skip
    for i in range(DEPTH):
        layer = f"model.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= {
                f"{layer}.self_attn.{part}.weight": (FEATURES, FEATURES),
                f"{layer}.self_attn.{part}.bias": (FEATURES,),
            }
        for norm, width in (
            ("self_attn.inner_attn_ln", 1),
            ("self_attn_layer_norm", 1),
            ("final_layer_norm", 1),
            ("ffn.ffn_layernorm", 4),
        ):
            found |= {f"{layer}.{norm}.{leaf}": (width * FEATURES,) for leaf in ("weight", "bias")}
        found |= {f"{layer}.ffn.fc1.weight": (4 * FEATURES, FEATURES), f"{layer}.ffn.fc1.bias": (4 * FEATURES,)}
        found |= {f"{layer}.ffn.fc2.weight": (FEATURES, 4 * FEATURES), f"{layer}.ffn.fc2.bias": (FEATURES,)}
    return found


def load() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Their weights, images (batch, height, width, 3), and the recorded logits."""
    with np.load(PATH) as file:
        return seeded.weights(shapes(), SEED), seeded.images((2, IMAGE, IMAGE, 3), SEED), file["logits"]


def _stand_in(name: str, **attributes: Any) -> None:
    """A module of that name, for what they import and this run does not need."""
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(attributes)


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    import torch

    sys.path[:0] = [str(clone), str(clone / "examples" / "longvit")]
    _stand_in("fairscale")
    _stand_in("fairscale.nn", checkpoint_wrapper=None, wrap=None)
    _stand_in("utils", get_rank=lambda: 0)
    _stand_in("timm")
    _stand_in("timm.models")
    _stand_in("timm.models.layers", trunc_normal_=lambda tensor, **_: None, drop_path=None)
    _stand_in("timm.models.registry", register_model=lambda make: make)
    install_attention()
    args = types.SimpleNamespace(
        img_size=IMAGE, patch_size=PATCH, encoder_embed_dim=FEATURES, encoder_layers=DEPTH,
        encoder_attention_heads=HEADS, drop_path_rate=0.0,
        checkpoint_activations=False,
    )  # fmt: skip
    model = importlib.import_module("modeling_finetune").LongViTForTCGAClassification(args, CLASSES)
    model.load_state_dict({name: torch.from_numpy(w) for name, w in seeded.weights(shapes(), SEED).items()})
    images = torch.from_numpy(seeded.images((2, IMAGE, IMAGE, 3), SEED)).permute(0, 3, 1, 2)
    with torch.no_grad():
        return {"logits": model.eval()(images).numpy()}


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))
