"""What ``zoo.save`` writes, read by the libraries whose names it has: nothing is missing, nothing left over, and where
they convert what they read, the outputs are equal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers.state import assign, flatten
from tests.compilation import program
from tests.references.live import images, relative, timm, torch

transformers = pytest.importorskip("transformers", reason="the reference implementation needs transformers")
pytestmark = [pytest.mark.reference, pytest.mark.full]

SIZE = 28
ISOTROPIC = {"features": 32, "depth": 2, "num_heads": 2, "image_size": SIZE, "patch_size": 14, "num_classes": 5}
BARE = {"num_classes": 0}
TEXT = {"vocab_size": 61, "features": 32, "depth": 2}
MAXVIT = {
    "features": (32, 64),
    "num_heads": (1, 2),
    "depths": (1, 2),
    "stem": 16,
    "image_size": 64,
    "window": 2,
    "num_classes": 5,
}


def _theirs(kind: str, **size: Any) -> Callable[[Path], Any]:
    """Reads the file by ``from_pretrained`` of a class of transformers, which lists what it misses, and what it does
    not use.
    """

    def read(file: Path) -> Any:
        cls = getattr(transformers, kind)
        config = cls.config_class(**size)
        config.save_pretrained(file.parent)
        file.rename(file.parent / "model.safetensors")
        model, loading = cls.from_pretrained(file.parent, output_loading_info=True)
        assert {key: names for key, names in loading.items() if names} == {}
        return model.eval()

    return read


def _state_dict(kind: str, **size: Any) -> Callable[[Path], Any]:
    """Reads the file as the class's own hooks do, which know the authors' names."""

    def read(file: Path) -> Any:
        from safetensors.torch import load_file

        cls = getattr(transformers, kind)
        model = cls(cls.config_class(**size))
        model.load_state_dict(load_file(file))
        return model.eval()

    return read


def _timm(name: str, **size: Any) -> Callable[[Path], Any]:
    """Reads the file by timm's own ``load_checkpoint``, its converters included."""

    def read(file: Path) -> Any:
        model = timm.create_model(name, **size)
        if file.suffix == ".npz":
            model.load_pretrained(
                str(file)
            )  # which has no place for a head of other classes than its own: left out here
            return model.eval()
        from timm.models import load_checkpoint
        from timm.models.vision_transformer import checkpoint_filter_fn

        load_checkpoint(model, str(file), filter_fn=checkpoint_filter_fn if name.startswith("vit") else None)
        return model.eval()

    return read


_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 14,
    "num_labels": 5,
}
_TIMM = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": SIZE, "patch_size": 14, "num_classes": 5}
_TIMM_MAXVIT = {
    "embed_dim": (32, 64),
    "depths": (1, 2),
    "stem_width": 16,
    "head_hidden_size": 64,
    "transformer_window_size": (2, 2),
}
_TIMM_MAXVIT |= {"img_size": 64, "num_classes": 5}
_PLAIN = {**_VIT, "intermediate_size": 128, "layer_norm_eps": 1e-6}
_CLIP = {**_PLAIN, "layer_norm_eps": 1e-5, "projection_dim": 5}
_BERT = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
_MAMBA = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 8,
    "time_step_rank": 5,
    "pad_token_id": 0,
}
_MAMBA2 = {
    **{k: v for k, v in _MAMBA.items() if k != "time_step_rank"},
    "num_heads": 8,
    "head_dim": 8,
    "n_groups": 8,
    "chunk_size": 16,
}
_POOLED = {"output": "pooled"}
_BERT_SIZE = {**TEXT, "num_heads": 2}
_MAMBA_SIZE = {**TEXT, "state_dim": 8, "step_rank": 5}
_MAMBA2_SIZE = {**TEXT, "state_dim": 8, "head_dim": 8, "groups": 8}
_DINO = {"dinov2": "Dinov2", "reg4_dinov2": "Dinov2WithRegisters"}

# (model, naming): what it is made with, and how it is read.
READ: dict[tuple[str, str], tuple[dict[str, Any], Callable[[Path], Any]]] = {
    ("vit_small_patch16_224", "timm"): (ISOTROPIC, _timm("vit_small_patch16_224", **_TIMM)),
    ("vit_small_patch16_224", "transformers"): (ISOTROPIC, _theirs("ViTForImageClassification", **_PLAIN)),
    ("vit_small_patch16_224", "bare"): ({**ISOTROPIC, **BARE, "pooler": True}, _theirs("ViTModel", **_PLAIN)),
    ("vit_small_patch16_224", "vision_transformer"): (
        {**ISOTROPIC, **BARE},
        _timm("vit_small_patch16_224", **{**_TIMM, **BARE}),
    ),
    ("vit_small_patch16_224", "big_vision"): (
        {**ISOTROPIC, **BARE, "prefix_positions": "none"},
        _timm("vit_small_patch16_224", **{**_TIMM, **BARE}, no_embed_class=True),
    ),
    ("deit_small_distilled_patch16_224", "timm"): (ISOTROPIC, _timm("deit_small_distilled_patch16_224", **_TIMM)),
    ("deit_small_distilled_patch16_224", "transformers"): (
        ISOTROPIC,
        _theirs("DeiTForImageClassificationWithTeacher", **_PLAIN),
    ),
    ("deit_small_distilled_patch16_224", "transformers_single"): (
        {**ISOTROPIC, "distilled_head": False},
        _theirs("DeiTForImageClassification", **_PLAIN),
    ),
    ("deit_small_distilled_patch16_224", "bare"): (
        {**ISOTROPIC, **BARE, "pooler": True},
        _theirs("DeiTModel", **_PLAIN),
    ),
    ("vit_base_patch32_clip_quickgelu_224", "timm"): (ISOTROPIC, _timm("vit_base_patch32_clip_quickgelu_224", **_TIMM)),
    ("vit_base_patch32_clip_quickgelu_224", "transformers"): (
        {**ISOTROPIC, "head_bias": False},
        _theirs("CLIPVisionModelWithProjection", **_CLIP),
    ),
    ("vit_base_patch32_clip_quickgelu_224", "bare"): ({**ISOTROPIC, **BARE}, _theirs("CLIPVisionModel", **_CLIP)),
    ("vit_base_patch32_siglip_256", "big_vision"): (
        {**ISOTROPIC, **BARE},
        _timm("vit_base_patch32_siglip_256", **{**_TIMM, **BARE}),
    ),
    **{
        (f"vit_small_patch14_{kind}", naming): (options, reader)
        for kind, title in _DINO.items()
        for naming, options, reader in (
            ("timm", ISOTROPIC, _timm(f"vit_small_patch14_{kind}", **_TIMM)),
            ("dinov2", {**ISOTROPIC, **BARE}, _timm(f"vit_small_patch14_{kind}", **{**_TIMM, **BARE})),
            ("bare", {**ISOTROPIC, **BARE}, _theirs(f"{title}Model", **_VIT)),
            (
                "transformers",
                {**ISOTROPIC, "pool": "token_and_average"},
                _theirs(f"{title}ForImageClassification", **_VIT),
            ),
        )
    },
    ("maxvit_tiny", "timm"): (
        MAXVIT,
        _timm("maxvit_tiny_tf_224", **_TIMM_MAXVIT),
    ),
    ("bert_tiny", "transformers"): (_BERT_SIZE, _theirs("BertForMaskedLM", **_BERT)),
    ("bert_tiny", "bare"): ({**_BERT_SIZE, **_POOLED}, _theirs("BertModel", **_BERT)),
    ("bert_tiny", "original"): (_BERT_SIZE, _theirs("BertForMaskedLM", **_BERT)),
    ("mamba_nano", "hf"): (_MAMBA_SIZE, _theirs("MambaForCausalLM", **_MAMBA)),
    ("mamba_nano", "state_spaces"): (_MAMBA_SIZE, _state_dict("MambaForCausalLM", **_MAMBA)),
    ("mamba2_nano", "hf"): (
        {**_MAMBA2_SIZE, "tied": False},
        _theirs("Mamba2ForCausalLM", **_MAMBA2, tie_word_embeddings=False),
    ),
    ("mamba2_nano", "state_spaces"): (
        _MAMBA2_SIZE,
        _state_dict("Mamba2ForCausalLM", **_MAMBA2, tie_word_embeddings=True),
    ),
}

# Namings, or families, that no installable library reads, and whose they are.
UNREAD = {
    "authors_cpu": "xLSTM's repository, whose package needs the compiler of CUDA for its other names",
    "dependencyvit": "a port of DependencyViT to timm, a repository",
    "facebook": "ResMLP's repository; timm reads it, and test_timm_models.py compares its names",
    "google": "MLP-Mixer's repository",
    "lsg": "the files that LSG's conversion script makes, which bring their own code",
    "ninformer": "NiNformer's repository",
    "released": "Kimi Linear's files, which bring their own code",
    "rsmamba": "RSMamba's repository",
    "sparsifiner": "Sparsifiner's repository",
    "transnext": "the repositories of TransNeXt and of MoH",
    "vir": "ViR's code, a repository",
    "authors": "the repositories of Agent Attention and of InLine attention",
    "big_vision_scan": "big_vision, a repository; the same arrays as big_vision, stacked",
    "biformer": "BiFormer's repository",
    "cswin": "CSWin's repository",
    "ecanet": "ECA-Net's repository; timm's names but for one",
    "fla": "flash-linear-attention, whose models run on GPUs alone",
    "fla_unfused": "the same, with another name of a norm",
    "pvt": "PVT's repository",
    "fan": "the repositories of FAN and of TAP",
    "hvt": "HVT's repository",
    "l2vit": "L2ViT's repository",
    "llama": "the authors' LLaMA with landmarks, a repository",
    "lookhere": "LookHere's repository",
    "nat": "the repository of NAT and DiNAT",
    "overlock": "OverLoCK's repository",
    "ravlt": "RAVLT's repository",
    "rmt": "RMT's repository",
    "t2t": "T2T-ViT's repository",
    "vig": "ViG's repository",
    "vit_resnas": "ViT-ResNAS' repository",
    "torchscale": "LongViT's repository",
}


# Live comparisons that write the library's own file again, bit for bit, and of which families.
RETURNED = {
    "test_bert_reference.py": ("albert",),
    "test_decoders_reference.py": (
        "gemma", "gpt2", "gpt_neo", "gptj", "griffin", "jamba", "kimi_linear", "linear_attention", "llama",
        "pythia",
    ),
    "test_efficient_encoders_reference.py": ("bigbird", "fnet", "nystromformer"),
    "test_encoder_decoders_reference.py": ("bart", "t5"),
    "test_eva_reference.py": ("eva",),
    "test_perceiver_image_reference.py": ("perceiver_image",),
    "test_perceiver_reference.py": ("perceiver",),
    "test_roberta_reference.py": ("longformer", "roberta"),
    "test_timm_models.py": (
        "cait", "convnext", "focalnet", "gmlp", "halonet", "mambaout", "mlp_mixer", "pvt", "resmlp", "resnet", "swin",
        "swinv2",
    ),
}  # fmt: skip


def test_every_naming_is_read_or_says_why_not() -> None:
    read = {(zoo.variant(model).family, naming) for model, naming in READ}
    named = {(zoo.variant(model).family, naming) for model in zoo.list_models() for naming in zoo.variant(model).rules}
    returned = {family for families in RETURNED.values() for family in families}
    known = {*UNREAD, *returned}
    assert {(family, naming) for family, naming in named if not known & {family, naming}} == read
    for comparison in RETURNED:
        text = Path(__file__).with_name(comparison).read_text()
        assert "same_bits(export(" in text or "assert_matches_timm(" in text, comparison


@functools.cache
def _model(name: str, **options: Any) -> Any:
    """Random everywhere: what is made as zeros and ones would hide what is left out."""
    model = zoo.create(name, **options)
    rng = np.random.default_rng(0)
    noise = {name: 0.2 * rng.standard_normal(leaf.shape) for name, leaf in flatten(model).items()}
    noise = {name: np.abs(values) if name.endswith(".var") else values for name, values in noise.items()}
    assign(model, {name: leaf + jnp.asarray(noise[name], leaf.dtype) for name, leaf in flatten(model).items()})
    return model


def _output(model: Any, x: np.ndarray) -> np.ndarray:
    """Of either kind of model."""
    if isinstance(model, nnx.Module):
        return np.asarray(program(model)(x))
    with torch.no_grad():
        out = model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy() if x.ndim == 4 else x))
    for key in ("logits", "image_embeds", "pooler_output"):
        out = out[key] if not torch.is_tensor(out) and key in out else out
    return out.numpy()


# Names that their readers change; of the others the live comparisons have the outputs, with the same names.
CONVERTED = ("vision_transformer", "big_vision", "dinov2", "original", "state_spaces")


@pytest.mark.parametrize(("name", "naming"), READ, ids=[f"{name}-{naming}" for name, naming in READ])
def test_its_library_reads_the_file(name: str, naming: str, tmp_path: Path) -> None:
    options, read = READ[name, naming]
    model = _model(name, **options)
    file = tmp_path / ("a.npz" if zoo.variant(name).rules[naming].layout == "jax" else "a.safetensors")
    zoo.save(model, file, naming=naming)
    theirs = read(file)
    if naming not in CONVERTED:
        return
    x = (
        images(2, *2 * (options["image_size"],), 3)
        if "image_size" in options
        else np.random.default_rng(0).integers(1, 61, (2, 9))
    )
    assert relative(_output(model, x), _output(theirs, x)) < 1e-5
