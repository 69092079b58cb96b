"""Records logits and gradients of authors' language models: ``python -m tests.references.recurrent_models NAME CLONE``
writes recurrent_NAME.npz beside this file.

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

SEED, BATCH, LENGTH, VOCABULARY, FEATURES, DEPTH, HEADS = 5, 2, 21, 11, 16, 2, 2


def path(name: str) -> Path:
    """The file of one model."""
    return Path(__file__).with_name(f"recurrent_{name}.npz")


def tokens() -> np.ndarray:
    """int32 (batch, length)."""
    return seeded.generator("tokens", SEED).integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A state dict by the reference's names."""
    return seeded.weights(shapes, SEED)


def load(name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The recorded logits (batch, length, vocabulary), and gradients by the reference's names."""
    with np.load(path(name)) as file:
        own = {key: file[key] for key in file.files}
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


def rwkv6(clone: Path) -> Any:
    """BlinkDL/RWKV-LM (Apache-2.0), commit 524481d: its model, with the recurrence of its comments for a kernel."""
    import torch

    source = (clone / "RWKV-v5/rwkv_v6_demo.py").read_text().split("# RWKV Tokenizer")[0]
    source = re.sub(r"wkv6_cuda = load\(.*?\]\)\n", "", source, flags=re.DOTALL)
    changes = {
        "args.head_size_a = 64": f"args.head_size_a = {FEATURES // HEADS}",
        "args.n_layer = 24": f"args.n_layer = {DEPTH}",
        "args.n_embd = 2048": f"args.n_embd = {FEATURES}",
        "args.vocab_size = 65536": f"args.vocab_size = {VOCABULARY}",
        "args.n_embd % 32 == 0": "True",
        "args.dim_att % 32 == 0": "True",
        "int((args.n_embd * 3.5) // 32 * 32)": "32",
        "D_MIX_LORA = 32": "D_MIX_LORA = 3",
        "D_DECAY_LORA = 64": "D_DECAY_LORA = 4",
    }
    for before, after in changes.items():
        assert before in source
        source = source.replace(before, after)

    def kernel(B: int, T: int, C: int, H: int, r: Any, k: Any, v: Any, w: Any, u: Any) -> Any:
        r, k, v, w = (a.view(B, T, H, C // H) for a in (r, k, v, w))
        state, out = torch.zeros(B, H, C // H, C // H), []
        for t in range(T):
            written = k[:, t, :, :, None] * v[:, t, :, None]
            out.append(torch.einsum("bhk,bhkv->bhv", r[:, t], u[..., None] * written + state))
            state = written + torch.exp(-torch.exp(w[:, t]))[..., None] * state
        return torch.stack(out, 1).reshape(B, T, C)

    space: dict[str, Any] = {}
    exec(source, space)
    space["RUN_CUDA_RWKV6"] = kernel
    return space["RWKV"](space["args"])


def transnormer(clone: Path) -> Any:
    """weigao266/TNL-MoE (Apache-2.0), commit 007576f: TransNormerLLM's own code, without its kernels, in training."""
    import os

    from tests.references import live

    assert live.torch
    os.environ.update(use_triton="False")
    sys.path.insert(0, str(next(clone.glob("*/models/tnl")).parent))
    import importlib

    sizes = {"decoder_embed_dim": FEATURES, "hidden_dim": FEATURES, "decoder_layers": DEPTH}
    config = importlib.import_module("tnl.configuration_transnormer").TransnormerConfig(
        **sizes, decoder_attention_heads=HEADS, glu_dim=24, vocab_size=VOCABULARY, linear_use_lrpe_list=[1, 0],
        use_cache=False, tie_word_embeddings=False, pad_token_id=None,
    )  # fmt: skip
    return importlib.import_module("tnl.modeling_transnormer").TransnormerForCausalLM(config).train()


def causal_relation(clone: Path, name: str = "Relation Network") -> Any:
    """FrankCuiCN/causal-relation-networks (Apache-2.0), commit 780d292: the model of its copying task."""
    import types

    import torch

    config = types.ModuleType("config")
    sizes = {"context_window": LENGTH, "vocab_size": VOCABULARY, "num_class": VOCABULARY, "num_block": DEPTH}
    widths = {"emb_size": FEATURES, "hid_size": FEATURES, "num_head": 1, "head_size": FEATURES, "batch_size": BATCH}
    norm = {"normalization_type": "Layer Normalization", "normalization_eps": 0.0}
    biases = {f"enable_relation_network_bias_{number}": number != 2 for number in (1, 2, 3)}
    vars(config).update(sizes | widths | norm | biases, model_name=name, enable_causal_mode=True)
    sys.modules["config"] = config
    sys.path.insert(0, str(clone / "src_copying"))
    # It puts constants on a GPU.
    torch.Tensor.cuda = lambda self: self  # type: ignore[method-assign, assignment]
    arange = torch.arange
    torch.arange = lambda *args, device=None, **options: arange(*args, **options)  # type: ignore[assignment]
    import importlib

    return importlib.import_module("model_all.model").Model()


def longhorn(clone: Path) -> Any:
    """Cranial-XIX/longhorn, commit 4ea1745: its model, with its step (Longhorn.step) as kernel and a plain RMSNorm."""
    import types

    import torch

    class RMSNorm(torch.nn.RMSNorm):
        bias = None

    def scan(x: Any, q: Any, k: Any, dt: Any, D: Any, t_bias: Any, z: Any, return_last_state: bool) -> Any:
        dt = torch.sigmoid(dt + t_bias[:, None])
        dt = dt / (1 + dt * k.square().sum(1, keepdim=True))
        state, out = 0, []
        for t in range(x.shape[-1]):
            step, key = dt[:, :, None, t], k[:, None, :, t]
            state = state * (1 - step * key**2) + x[:, :, None, t] * step * key
            out.append((state * q[:, None, :, t]).sum(-1) + D * x[:, :, t])
        return torch.stack(out, -1) * torch.nn.functional.silu(z)

    names = {
        "ops.selective_scan_interface": {"longhorn_inner_fn": None, "selective_scan_online7_fn": scan},
        "utils.generation": {"GenerationMixin": object},
        "utils.hf": {"load_config_hf": None, "load_state_dict_hf": None},
        "ops.triton.layernorm": {"RMSNorm": RMSNorm, "layer_norm_fn": None, "rms_norm_fn": None},
    }
    for name, things in names.items():
        sys.modules[f"mamba_ssm.{name}"] = module = types.ModuleType(name)
        vars(module).update(things)
    module = types.ModuleType("longhorn")
    sys.modules["longhorn"] = module
    exec((clone / "models" / "longhorn.py").read_text(), vars(module))
    config = module.LonghornConfig(
        d_model=FEATURES, n_layer=DEPTH, vocab_size=VOCABULARY, ssm_cfg={"d_state": 4}, fused_add_norm=False,
        pad_vocab_size_multiple=1, tie_embeddings=False,
    )  # fmt: skip
    return module.LonghornLMHeadModel(config)


def xlstm(clone: Path) -> Any:
    """NX-AI/xlstm, commit 032a6fb: its model of blocks, an mLSTM's and an sLSTM's, as it runs on a CPU."""
    import importlib

    sys.path.append(str(clone))
    theirs = importlib.import_module("xlstm")
    config = theirs.xLSTMLMModelConfig(
        mlstm_block=theirs.mLSTMBlockConfig(mlstm=theirs.mLSTMLayerConfig(num_heads=HEADS)),
        slstm_block=theirs.sLSTMBlockConfig(
            slstm=theirs.sLSTMLayerConfig(backend="vanilla", num_heads=HEADS), feedforward=theirs.FeedForwardConfig()
        ),
        slstm_at=[1], context_length=LENGTH, num_blocks=DEPTH, embedding_dim=FEATURES, vocab_size=VOCABULARY,
    )  # fmt: skip
    return theirs.xLSTMLMModel(config)


def fla(module: str, kind: str, replaced: str, plain: Callable[[Any], Any], **options: Any) -> Callable[[Path], Any]:
    """fla-org/flash-linear-attention (MIT), commit bc3b101d, its plain recurrence in place of the kernel ``replaced``
    (module and name) of a layer; its other kernels run as those of :mod:`tests.references.linear_recurrences`.
    """

    def make(clone: Path) -> Any:
        import importlib

        from tests.references import live
        from tests.references.linear_recurrences import interpreted

        assert live.torch
        interpreted(clone)
        place, name = replaced.split(":")
        setattr(importlib.import_module(place), name, plain(importlib))
        models = importlib.import_module(f"fla.models.{module}")
        common = {"hidden_size": FEATURES, "num_hidden_layers": DEPTH, "vocab_size": VOCABULARY, "num_heads": HEADS}
        config = getattr(models, f"{kind}Config")(**common, intermediate_size=24, fuse_cross_entropy=False, **options)
        return getattr(models, f"{kind}ForCausalLM")(config).eval()

    return make


def _unit(x: Any) -> Any:
    return x * ((x * x).sum(-1, keepdim=True) + 1e-6).rsqrt()


def _comba(importlib: Any) -> Any:
    naive = importlib.import_module("fla.ops.comba.naive").naive_recurrent_comba
    return lambda q, k, v, p, g, beta, **_: naive(_unit(q), _unit(k), v, _unit(p), beta, g)


def _kda(importlib: Any) -> Any:
    naive = importlib.import_module("fla.ops.kda.naive").naive_recurrent_kda
    gate = importlib.import_module("fla.ops.kda.gate").naive_kda_gate
    return lambda q, k, v, g, beta, A_log, dt_bias, **_: naive(
        _unit(q), _unit(k), v, gate(g, A_log, dt_bias), beta.sigmoid()
    )


def _forgetting(importlib: Any) -> Any:
    naive = importlib.import_module("fla.ops.forgetting_attn.naive").naive_forgetting_attn
    return lambda q, k, v, f, **_: naive(q, k, v, f)


RANKS = {"DECAY": 3, "AAA": 4, "MV": 5, "GATE": 6}
def landmark(clone: Path, retrieving: bool = False) -> Any:
    """epfml/landmark-attention (Apache-2.0), commit d963e50: the model of its language benchmark, with a landmark, the
    token after those of the vocabulary, after every two tokens. The tokens are read at once, or six at a time with two
    blocks retrieved for each query and head; its cache, which has no gradient, then has one, and of landmarks with
    equal scores, as all old ones have in the first layer, the oldest is taken.
    """
    import argparse
    import contextlib
    import importlib
    from unittest import mock

    import torch

    from tests.references import recording

    recording.stand_in({"tiktoken": {"get_encoding": lambda name: None}})
    sys.path.insert(0, str(clone / "lm_benchmark"))
    frequency = 2
    config = argparse.Namespace(
        vocab_size=VOCABULARY + 1, landmark_id=VOCABULARY, n_embd=FEATURES, n_head=HEADS, n_layer=DEPTH, bias=False,
        dropout=0.0, group_dropout=None, sequence_length=2 * LENGTH, softmax_func="mem_opt",
        positional_encoder="rotary", max_groups_for_softmax=LENGTH, enable_rem_score=False, postpone_lm_cache=False,
        batch_size=BATCH, lm_cache="mem" if retrieving else "none", mem_cache_size=LENGTH, mem_cache_freq=frequency,
        cache_topk=2, cache_selection_method="per_token_and_head", allow_cache_during_training=True,
    )  # fmt: skip

    storage = importlib.import_module("models.caches.mem_cache").MemLMCacheStorage
    store = storage.store_in_cache

    def store_in_a_copy(self: Any, *args: Any) -> None:
        for name, buffer in self.named_buffers():
            setattr(self, name, buffer.clone())
        store(self, *args)

    storage.store_in_cache = store_in_a_copy

    def oldest_first(scores: Any, dim: int, k: int) -> tuple[Any, Any]:
        values, order = torch.sort(torch.round(scores * 2**16), dim=dim, descending=True, stable=True)
        return values[..., :k], order[..., :k]

    torch.Tensor.topk = oldest_first  # type: ignore[method-assign, assignment]

    class Woven(importlib.import_module("models.landmark").GPTBase):  # type: ignore[name-defined, misc]
        def forward(self, tokens: Any) -> Any:
            if not retrieving:
                whole = tokens[:, : LENGTH // frequency * frequency].reshape(BATCH, -1, frequency)
                marks = torch.full_like(whole[..., :1], VOCABULARY)
                woven = torch.cat([torch.cat([whole, marks], -1).reshape(BATCH, -1), tokens[:, whole[0].numel() :]], 1)
                logits = super().forward(woven, targets=woven, get_logits=True)["logits"]
                return logits[woven != VOCABULARY].reshape(BATCH, LENGTH, -1)[..., :VOCABULARY]
            self.clear_state()
            found = []
            for piece in map(torch.Tensor.contiguous, tokens.split(6, dim=1)):
                with mock.patch.object(torch, "no_grad", contextlib.nullcontext):
                    found.append(super().forward(piece, targets=piece, get_logits=True, use_cache=True)["logits"])
            return torch.cat(found, 1)[..., :VOCABULARY]

    return Woven(config)


RECORDED: dict[str, Callable[[Path], Any]] = {
    "rwkv6": rwkv6,
    "rwkv7": rwkv7,
    "causal_relation": causal_relation,
    "causal_relation_linear": lambda clone: causal_relation(clone, "Linear Relation Network"),
    "landmark": landmark,
    "landmark_retrieving": lambda clone: landmark(clone, retrieving=True),
    "longhorn": longhorn,
    "transnormer": transnormer,
    "xlstm": xlstm,
    "comba": fla("comba", "Comba", "fla.layers.comba:fused_recurrent_comba", _comba, head_dim=8, expand_v=1.0),
    "kda": fla("kda", "KDA", "fla.layers.kda:fused_recurrent_kda", _kda, head_dim=8),
    "forgetting_transformer": fla(
        "forgetting_transformer",
        "ForgettingTransformer",
        "fla.layers.forgetting_attn:parallel_forgetting_attn",
        _forgetting,
        use_output_gate=True,
    ),
}


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
    return {"logits": logits.detach().numpy(), **made}


if __name__ == "__main__":
    np.savez_compressed(path(sys.argv[1]), **record(sys.argv[1], Path(sys.argv[2])))
