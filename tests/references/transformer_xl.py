"""Records outputs of Transformer-XL's authors: ``python -m tests.references.transformer_xl CLONE`` writes an .npz
beside this file.

CLONE is a checkout of github.com/kimiyoung/transformer-xl (Apache-2.0), commit 44781ed2, whose pytorch/ folder runs on
a CPU. A text is read segment by segment, with the memories that each call hands to the next; its logits are the hidden
states times the words, as in their softmax without its bias. Gradients are those of a first segment, where no memory
cuts them. Only numbers are kept: weights and tokens follow from a seed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, BATCH, VOCABULARY, DEPTH, HEADS, FEATURES, HIDDEN = 5, 2, 11, 2, 2, 16, 24
LENGTH = 43
# Segments and memories, and the distance from which on all count as one.
CASES: dict[str, tuple[int, int, int | None]] = {"plain": (8, 6, None), "clamped": (5, 12, 7)}
PUBLISHED = {
    "transformer_xl_41m": (204, 12, 8, 512, 64, 2048), "transformer_xl_277m": (204, 24, 8, 1024, 128, 3072)
}  # fmt: skip
GRADIENTS = {
    "word_emb.emb_layers.0.weight": "embedding.embedding", "layers.0.dec_attn.r_net.weight": "blocks.0.mixer.distance",
    "layers.0.pos_ff.CoreNet.0.weight": "blocks.0.channel.up", "layers.1.dec_attn.o_net.weight": "blocks.1.mixer.out",
}  # fmt: skip


def tokens() -> np.ndarray:
    """int32 (batch, length)."""
    return seeded.generator("tokens", SEED).integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)


def shapes() -> dict[str, tuple[int, ...]]:
    """Of the weights, by the authors' names."""
    made: dict[str, tuple[int, ...]] = {
        "word_emb.emb_layers.0.weight": (VOCABULARY, FEATURES),
        "r_w_bias": (HEADS, FEATURES // HEADS), "r_r_bias": (HEADS, FEATURES // HEADS),
    }  # fmt: skip
    for i in range(DEPTH):
        sizes = {"dec_attn.qkv_net": (3 * FEATURES, FEATURES), "dec_attn.o_net": (FEATURES, FEATURES)}
        sizes |= {"dec_attn.r_net": (FEATURES, FEATURES)}
        sizes |= {"pos_ff.CoreNet.0": (HIDDEN, FEATURES), "pos_ff.CoreNet.3": (FEATURES, HIDDEN)}
        made |= {f"layers.{i}.{name}.weight": size for name, size in sizes.items()}
        made |= {f"layers.{i}.{name}.bias": sizes[name][:1] for name in ("pos_ff.CoreNet.0", "pos_ff.CoreNet.3")}
        for norm in ("dec_attn", "pos_ff"):
            made |= {f"layers.{i}.{norm}.layer_norm.{part}": (FEATURES,) for part in ("weight", "bias")}
    return made


def weights() -> dict[str, np.ndarray]:
    """By the authors' names."""
    return seeded.weights(shapes(), SEED)


def ours(theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same by our names."""
    made = {"embedding.embedding": theirs["word_emb.emb_layers.0.weight"]}
    names = {"dec_attn.o_net": "mixer.out", "dec_attn.r_net": "mixer.distance"}
    names |= {"pos_ff.CoreNet.0": "channel.up", "pos_ff.CoreNet.3": "channel.down"}
    for i in range(DEPTH):
        qkv = np.split(theirs[f"layers.{i}.dec_attn.qkv_net.weight"].T, 3, axis=1)
        made |= {f"blocks.{i}.mixer.{name}.kernel": a for name, a in zip(("query", "key", "value"), qkv, strict=True)}
        for name, our in names.items():
            made[f"blocks.{i}.{our}.kernel"] = theirs[f"layers.{i}.{name}.weight"].T
            if f"layers.{i}.{name}.bias" in theirs:
                made[f"blocks.{i}.{our}.bias"] = theirs[f"layers.{i}.{name}.bias"]
        for name, our in {"dec_attn": "mixer_norm", "pos_ff": "channel_norm"}.items():
            for part, its in {"weight": "scale", "bias": "bias"}.items():
                made[f"blocks.{i}.{our}.{its}"] = theirs[f"layers.{i}.{name}.layer_norm.{part}"]
        made |= {f"blocks.{i}.mixer.content": theirs["r_w_bias"], f"blocks.{i}.mixer.place": theirs["r_r_bias"]}
    return made


def load() -> dict[str, np.ndarray]:
    """The recorded arrays: of each case "CASE/logits" (batch, length, vocabulary) and "CASE/NAME", gradients by the
    authors' names; "count/MODEL", parameters.
    """
    with np.load(PATH) as file:
        return dict(file)


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    sys.path[:0] = [str(clone / "pytorch"), str(clone / "pytorch" / "utils")]
    import torch

    # Their adaptive softmax, which is not used, reads the version of CUDA when it is imported; masks were bytes.
    torch.version.cuda = torch.version.cuda or "0.0"
    torch.Tensor.byte = torch.Tensor.bool  # type: ignore[method-assign, assignment]
    from mem_transformer import MemTransformerLM

    def make(sizes: tuple[int, ...], segment: int, memory: int, clamp: int | None) -> Any:
        return MemTransformerLM(
            *sizes, 0.0, 0.0, tgt_len=segment, ext_len=0, mem_len=memory, clamp_len=clamp or -1
        ).eval()

    made: dict[str, np.ndarray] = {}
    for name, case in CASES.items():
        model = make((VOCABULARY, DEPTH, HEADS, FEATURES, FEATURES // HEADS, HIDDEN), *case)
        missing = model.load_state_dict({key: torch.from_numpy(a) for key, a in weights().items()}, strict=False)
        assert not missing.unexpected_keys
        assert {key.split(".")[0] for key in missing.missing_keys} <= {"crit", "pos_emb"}
        words = model.word_emb.emb_layers[0].weight
        text, memories, logits = torch.from_numpy(tokens()).long().T, model.init_mems(), []
        for piece in text.split(case[0]):
            hidden, memories = model._forward(piece, mems=memories)
            logits.append(hidden @ words.T)
        made[f"{name}/logits"] = torch.cat(logits).detach().transpose(0, 1).numpy()
        torch.sin(logits[0]).sum().backward()
        known = dict(model.named_parameters())
        made |= {f"{name}/{key}": known[key].grad.numpy() for key in GRADIENTS}
    for name, sizes in PUBLISHED.items():
        model = make(sizes, 4, 4, None)
        made[f"count/{name}"] = np.asarray(sum(p.nelement() for p in model.parameters()))
    return made


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))
