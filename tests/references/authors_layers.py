"""Records outputs of four authors' layers: ``python -m tests.references.authors_layers CLONES`` writes
authors_layers.npz beside this file.

CLONES holds checkouts of github.com/thuml/Flowformer (MIT, commit 61f5d8c), github.com/gmongaras/Cottention_Transformer
(without a license, commit 63a11ea), github.com/NadavSc/Diff-Mamba (MIT, commit 60c141e) and github.com/SkyworkAI/MoH
(Apache-2.0, commit 2cefd57), by the names of the repositories. Only numbers are kept: weights and inputs follow from
seeds. Recorded are flow attention and cosine attention, to both sides and causal, what the second block of Diff-Mamba-2
adds to its input, and attention with a mixture of heads and its loss, each with the gradient of the input. Of causal
cosine attention it is the loop of the authors' decoding, for their other form is a CUDA kernel; without its rotary
embedding. Of Diff-Mamba-2 it is the form without kernels, and without the norm before the mixer.
"""

from __future__ import annotations

import copy
import importlib
import math
import sys
import types
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from tests.references import recording, seeded
from tests.references.weighted_scores import classes

PATH = Path(__file__).with_suffix(".npz")
SEED, BATCH, FEATURES, HEADS, LENGTH = 21, 2, 12, 3, 23
PARTS = ("query", "key", "value", "out")


def tokens() -> np.ndarray:
    """(BATCH, LENGTH, FEATURES)."""
    return seeded.generator("tokens", SEED).standard_normal((BATCH, LENGTH, FEATURES)).astype(np.float32)


def weights() -> dict[str, np.ndarray]:
    """Of all four layers: kernels (out, in) and biases of the projections, and ``power`` (HEADS,)."""
    shapes: dict[str, tuple[int, ...]] = {"power": (HEADS,)}
    for part in PARTS:
        shapes |= {f"{part}.weight": (FEATURES, FEATURES), f"{part}.bias": (FEATURES,)}
    return seeded.weights(shapes, SEED, sharpness=2.0)


MANY, SHARED, CHOSEN = 6, 2, 2  # heads of a mixture
STATE, TAPS = 6, 4
MIXER = ("A_log", "D", "conv1d.bias", "conv1d.weight", "dt_bias", "in_proj.weight", "norm.weight", "out_proj.weight")


def differential() -> dict[str, np.ndarray]:
    """Of Diff-Mamba-2, by the authors' names."""
    channels = FEATURES + 2 * STATE
    sizes = ((HEADS,), (HEADS,), (channels,), (channels, 1, TAPS), (HEADS,), (FEATURES + channels + HEADS, FEATURES),
        (FEATURES,),
             (FEATURES, FEATURES))  # fmt: skip
    shapes = {f"mixer_{i}.{name}": size for i in (1, 2) for name, size in zip(MIXER, sizes, strict=True)}
    return seeded.weights(shapes | {"lambda_q1": (FEATURES,), "subln.weight": (FEATURES,)}, SEED)


def mixture() -> dict[str, np.ndarray]:
    """Of a mixture of heads, by the authors' names."""
    shapes: dict[str, tuple[int, ...]] = {"qkv.weight": (3 * FEATURES, FEATURES), "qkv.bias": (3 * FEATURES,)}
    shapes |= {"proj.weight": (FEATURES, FEATURES), "proj.bias": (FEATURES,), "wg.weight": (MANY - SHARED, FEATURES)}
    return seeded.weights(shapes | {"wg_0.weight": (2, FEATURES), "wg_1.weight": (SHARED, FEATURES)}, SEED)


def record(clones: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import torch

    made: dict[str, np.ndarray] = {}
    state = {name: torch.from_numpy(array) for name, array in weights().items()}

    def keep(name: str, call: Any) -> None:
        made.update(recording.output_and_gradient(name, call, tokens()))

    given: dict[str, Any] = {"torch": torch, "nn": torch.nn, "math": math, "Function": torch.autograd.Function}
    given |= {"Optional": Optional, "Tuple": tuple, "Union": Union}  # of annotations
    found = classes(clones / "Flowformer" / "Flow_Attention.py", given)
    projections = [name for name in state if name != "power"]
    for name, kind in (("flow", "Flow_Attention"), ("flow_causal", "Flow_Attention_Causal")):
        layer = found[kind](FEATURES, FEATURES, FEATURES, HEADS).eval()
        layer.load_state_dict({n.replace(".", "_projection."): state[n] for n in projections})
        keep(name, lambda x, layer=layer: layer(x, x, x))

    folder = clones / "Cottention_Transformer"
    config = types.SimpleNamespace(
        hidden_size=FEATURES, num_attention_heads=HEADS, attention_probs_dropout_prob=0.0, is_decoder=False
    )
    layer = classes(folder / "BERT_Trainer" / "BertCosAttention.py", given)["BertCosAttention"](config).eval()
    own = {n: state[n] for n in projections if not n.startswith("out")}
    layer.load_state_dict(own | {"norm_const": state["power"].reshape(1, HEADS, 1, 1)})
    seen = torch.zeros(BATCH, 1, 1, LENGTH)

    def out(x: Any) -> Any:
        return x @ state["out.weight"].T + state["out.bias"]

    keep("cosine", lambda x: out(layer(x, seen)[0]))
    gptj = importlib.import_module("transformers.models.gptj.modeling_gptj")
    config = types.SimpleNamespace(
        hidden_size=FEATURES, num_attention_heads=HEADS, max_position_embeddings=64, attn_pdrop=0.0, resid_pdrop=0.0,
        rotary_dim=4,
        fast_inference=True,
    )  # fmt: skip
    positions = {"create_sinusoidal_positions": gptj.create_sinusoidal_positions}
    causal = classes(folder / "GPT_Trainer" / "GPTCosAttention.py", given | positions)["GPTCosAttention"](config).eval()
    causal.norm_const.data.copy_(state["power"].reshape(1, HEADS, 1, 1))

    def attend(x: Any) -> Any:
        causal.past_KV, causal.cur_s = torch.zeros_like(causal.past_KV), 1
        parts = (x @ state[f"{part}.weight"].T + state[f"{part}.bias"] for part in PARTS[:3])
        q, k, v = (part.reshape(BATCH, LENGTH, HEADS, -1).transpose(1, 2) for part in parts)
        heads: list[Any] = []
        # The authors' loop writes into one array, of which a gradient is not what was asked: token by token it is.
        for t in range(LENGTH):
            now = slice(t, t + 1)
            y = causal._cos_attn(q[:, :, now], k[:, :, now], v[:, :, now], seen[..., now])[0]
            heads.append(y)
        return out(torch.cat(heads, 2).transpose(1, 2).reshape(BATCH, LENGTH, FEATURES))

    keep("cosine_causal", attend)

    configuration = importlib.import_module("transformers.models.mamba2.configuration_mamba2")
    activations = importlib.import_module("transformers.activations")
    sizes = {"hidden_size": FEATURES, "num_heads": HEADS, "head_dim": 2 * FEATURES // HEADS, "state_size": STATE}
    config = configuration.Mamba2Config(**sizes, n_groups=1, expand=2, conv_kernel=TAPS, chunk_size=8, use_bias=False)
    config.rms_norm = True  # of an older version
    given |= {"copy": copy, "ACT2FN": activations.ACT2FN, "RMSNorm": torch.nn.RMSNorm, "is_fast_path_available": False}
    given |= {
        "logger": types.SimpleNamespace(warning_once=lambda *_: None),
        "Mamba2Config": config,
        "DiffMamba2Cache": None,
    }
    names = ("pad_tensor_by_size", "reshape_into_chunks", "segment_sum", "apply_mask_to_padding_states",
        "MambaRMSNormGated",
             "Mamba2Mixer", "Mamba2RMSNorm", "Mamba2Block", "DiffMamba2Block")  # fmt: skip
    block = classes(clones / "Diff-Mamba" / "modules" / "modeling_diffmamba2.py", given, names)["DiffMamba2Block"](
        config, 1
    )
    block.load_state_dict({n: torch.from_numpy(a) for n, a in differential().items()}, strict=False)
    block.norm.forward = lambda x: x
    keep("differential_mamba", lambda x: block(x) - x)

    given |= {"F": torch.nn.functional, "Final": Optional, "use_fused_attn": lambda: False}
    kind = classes(clones / "MoH" / "MoH-DiT" / "models.py", given, ("MoHAttention",))["MoHAttention"]
    heads = kind(FEATURES, num_heads=MANY, qkv_bias=True, shared_head=SHARED, routed_head=CHOSEN)
    heads.load_state_dict({n: torch.from_numpy(a) for n, a in mixture().items()})
    keep("mixture_of_heads", heads)
    made["mixture_of_heads/load_balance"] = kind.LOAD_BALANCING_LOSSES[0].detach().numpy()
    return made


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))
