"""What a folder's ``config.json`` says is followed: models become what it describes, or say what they can't be."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest
from flax import nnx

import zoo
from layers.state import assign, flatten
from tests.tiers import tiered
from tests.zoo.test_weights import equal

VIT: dict[str, Any] = {"features": 24, "depth": 2, "num_heads": 2, "image_size": 16, "patch_size": 8, "num_classes": 3}
BERT: dict[str, Any] = {"features": 24, "depth": 2, "num_heads": 2, "vocab_size": 30, "num_classes": 3}
DECODER: dict[str, Any] = {"features": 16, "depth": 2, "num_heads": 2, "vocab_size": 30}
MAMBA2: dict[str, Any] = {"features": 16, "depth": 2, "vocab_size": 30, "head_dim": 8}
IMAGES = np.random.default_rng(0).standard_normal((1, 16, 16, 3)).astype(np.float32)
TOKENS = np.random.default_rng(0).integers(0, 30, (1, 7))

# A name, how it is made, what transformers writes of the model in the file, and what it is made with.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "vit": ("vit_small_patch16_224", VIT, {"layer_norm_eps": 0.1, "num_attention_heads": 4, "hidden_act": "quick_gelu"},
            {"norm_epsilon": 0.1, "num_heads": 4, "mlp": "quick_gelu"}),
    "tower": ("vit_small_patch16_224", VIT,
        {"model_type": "clip", "hidden_act": "relu", "vision_config": {"hidden_act": "quick_gelu"}},
              {"mlp": "quick_gelu"}),
    "bert": ("bert_tiny", BERT, {"layer_norm_eps": 0.1, "num_attention_heads": 4, "hidden_act": "gelu"},
        {"norm_epsilon": 0.1, "num_heads": 4}),
    "mamba2": ("mamba2_nano", MAMBA2,
        {"n_groups": 4, "state_size": 8, "layer_norm_epsilon": 0.1, "tie_word_embeddings": False, "hidden_act": "silu"},
               {"groups": 4, "state_dim": 8, "norm_epsilon": 0.1, "tied": False}),
    "gpt2": ("gpt2_nano", DECODER, {"layer_norm_epsilon": 0.1, "n_head": 4, "activation_function": "gelu"},
             {"norm_epsilon": 0.1, "num_heads": 4, "mlp": "gelu"}),
    "gpt_neo": ("gpt_neo_nano", DECODER,
                {"layer_norm_epsilon": 0.1, "window_size": 7, "attention_types": [[["local"], 1]]},
                {"norm_epsilon": 0.1, "window": 7, "full_blocks": ()}),
    "gptj": ("gptj_nano", DECODER, {"layer_norm_epsilon": 0.1, "rotary_dim": 4, "activation_function": "gelu"},
             {"norm_epsilon": 0.1, "rotary_dimensions": 4, "mlp": "gelu"}),
    "llama": ("llama_nano", {**DECODER, "num_kv_heads": 2},
              {"model_type": "llama", "rms_norm_eps": 0.1, "sliding_window": 3, "rope_theta": 100.0,
                  "rope_scaling": {"type": "linear", "factor": 2.0}},
              {"norm_epsilon": 0.1, "window": 3, "rotary": {"base": 100.0, "factor": 2.0}}),
    "gemma": ("gemma_nano", {**DECODER, "window": 2},
              {"model_type": "gemma2", "layer_types": ["full_attention"] * 2, "attn_logit_softcapping": 2.0,
                  "query_pre_attn_scalar": 4},
              {"global_every": 1, "attention_cap": 2.0, "attention_scale": 0.5}),
    "pythia": ("pythia_nano", DECODER, {"use_parallel_residual": False, "rotary_pct": 0.5, "rotary_emb_base": 100},
               {"parallel": False, "rotary_fraction": 0.5, "rotary": 100}),
    "delta_net": ("gated_delta_net_nano", {**DECODER, "head_dim": 8}, {"norm_eps": 0.1, "allow_neg_eigval": True},
                  {"norm_epsilon": 0.1, "negative": True}),
    "albert": ("albert_nano", {**DECODER, "embedding_features": 8}, {"num_hidden_layers": 3, "hidden_act": "gelu"},
        {"depth": 3, "mlp": "gelu"}),
}  # fmt: skip
# What the same shapes are by default.
SAME_SHAPES = {"mamba2": {"groups": 1, "state_dim": 32}}


def write(folder: Path, model: nnx.Module, config: dict[str, Any], naming: str | None = None) -> Path:
    zoo.save(model, folder / "model.safetensors", naming=naming)
    (folder / "config.json").write_text(json.dumps({"model_type": "any", **config}))
    return folder


@functools.cache
def forward(graphdef: Any) -> Callable[..., jax.Array]:
    """One program for all models of one structure."""
    return jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))


def output(model: Any) -> np.ndarray:
    loud = nnx.clone(model)  # kernels as small as they are made would hide an activation
    assign(loud, {name: 10 * np.asarray(leaf) for name, leaf in flatten(model).items() if name.endswith("kernel")})
    graphdef, state = nnx.split(loud)
    return np.asarray(forward(graphdef)(state, IMAGES if hasattr(model, "patch_embed") else TOKENS))


@pytest.mark.parametrize(
    ("case", "scan"),
    tiered(
        [*((case, False) for case in CASES), ("vit", True), ("delta_net", True)], lambda given: given == ("vit", False)
    ),
)
def test_a_model_becomes_what_is_described(case: str, scan: bool, tmp_path: Path) -> None:
    """By ``zoo.create`` and by ``zoo.load``; with one notice, and as a model that was made so: the same program of the
    same arrays, or where the program is another, the same outputs.
    """
    name, options, config, differing = CASES[case]
    whole = zoo.create(name, **{**options, **differing}, rngs=nnx.Rngs(1))
    folder = write(tmp_path, whole, config)
    own = {**options, **SAME_SHAPES.get(case, {}), "scan": scan}
    unlike, wanted = zoo.create(name, **own, rngs=nnx.Rngs(1)), output(whole) if scan else None
    assert nnx.graphdef(unlike) != nnx.graphdef(whole)
    if wanted is not None:
        assert np.abs(output(unlike) - wanted).max() > 1e-3 * np.abs(wanted).max()
    with pytest.warns(UserWarning, match="this one has become such a model") as notice:
        loaded = zoo.load(zoo.create(name, **own), folder)
    assert all(f"{field}={value!r}" in str(notice[0].message) for field, value in differing.items())
    assert dataclasses.replace(loaded.config, scan=False) == whole.config
    asked = {field: value for field, value in own.items() if field not in differing}
    with pytest.warns(UserWarning, match="the model follows it"):
        created = zoo.create(name, weights=folder, **asked)
    for model in (loaded, created):
        if wanted is None:
            assert nnx.graphdef(model) == nnx.graphdef(whole)
            assert equal(model, whole)
        else:
            np.testing.assert_allclose(output(model), wanted, rtol=1e-5, atol=1e-6)


def test_what_is_asked_for_is_kept(tmp_path: Path) -> None:
    folder = write(
        tmp_path, zoo.create("vit_small_patch16_224", **VIT), {"layer_norm_eps": 0.1, "num_attention_heads": 2}
    )
    with pytest.warns(UserWarning, match=r"config\.json of .* has norm_epsilon=0\.1: what was asked for is kept"):
        assert zoo.create("vit_small_patch16_224", weights=folder, **VIT, norm_epsilon=1e-5).config.norm_epsilon == 1e-5


def test_what_agrees_is_not_told(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        zoo.create("vit_small_patch16_224", **VIT),
        {"layer_norm_eps": 1e-6, "hidden_act": "gelu", "num_attention_heads": 2},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zoo.create("vit_small_patch16_224", weights=folder, **VIT)


def test_only_what_lies_beside_the_weights_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file has its folder's; a released checkpoint's name has none, wherever it is asked for."""
    monkeypatch.chdir(write(tmp_path, zoo.create("vit_small_patch16_224", **VIT), {"layer_norm_eps": 0.1}))
    with pytest.warns(UserWarning, match=r"norm_epsilon=0\.1"):
        assert zoo.create("vit_small_patch16_224", weights="model.safetensors", **VIT).config.norm_epsilon == 0.1
    Path("config.json").write_text("{")
    with pytest.raises(zoo.WeightsError, match="unknown weights 'in2k'"):
        zoo.create("vit_small_patch16_224", weights="in2k", **VIT)


def test_labels_are_class_names(tmp_path: Path) -> None:
    labels = {"0": "cat", "2": "fox", "1": "dog"}
    folder = write(tmp_path, zoo.create("vit_small_patch16_224", **VIT), {"id2label": labels})
    assert zoo.create("vit_small_patch16_224", weights=folder, **VIT).class_names == ("cat", "dog", "fox")
    assert zoo.load(zoo.create("vit_small_patch16_224", **VIT), folder, head="reset").class_names is None
    (folder / "config.json").write_text(
        json.dumps({"model_type": "vit", "id2label": {str(i): f"LABEL_{i}" for i in range(3)}})
    )
    assert zoo.create("vit_small_patch16_224", weights=folder, **VIT).class_names is None


def test_what_timm_writes_is_read(tmp_path: Path) -> None:
    """Preprocessing and labels; and the architecture, of which another may have the same shapes."""
    folder = write(tmp_path, zoo.create("vit_base_patch32_clip_224", **VIT), {}, naming="timm")
    cfg = {"mean": [0.1, 0.2, 0.3], "crop_pct": 1.0, "label_names": ["a", "b", "c"]}
    described = {
        "architecture": "vit_base_patch32_clip_quickgelu_224",
        "pretrained_cfg": cfg,
        "model_args": {"act_layer": "relu"},
    }
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.warns(UserWarning, match="mlp='quick_gelu'") as notices:
        model = zoo.create("vit_base_patch32_clip_224", weights=folder, **VIT)
    assert model.config.mlp == "quick_gelu"
    assert any("model_args={'act_layer': 'relu'}, which is not compared" in str(one.message) for one in notices)
    assert model.class_names == ("a", "b", "c")
    assert (zoo.preprocess(model).mean, zoo.preprocess(model).crop_fraction) == ((0.1, 0.2, 0.3), 1.0)


HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
# What image processors of transformers write, and the preprocessing that it means.
PROCESSORS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "squash": ("ViTImageProcessor", {**HALVES, "size": {"height": 16, "width": 16}, "resample": 2},
               {"crop_mode": "squash", "crop_fraction": 1.0, "interpolation": "bilinear", "mean": (0.5,) * 3}),
    "squash and crop": ("DeiTImageProcessor",
        {"size": {"height": 20, "width": 20}, "do_center_crop": True, "crop_size": {"height": 16, "width": 16}},
                        {"crop_mode": "squash", "crop_fraction": 0.8}),
    "shorter side": ("BitImageProcessor",
        {"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": {"height": 16, "width": 16},
            "resample": 3},
                     {"crop_mode": "center", "crop_fraction": 0.8, "interpolation": "bicubic"}),
    "one number": ("CLIPImageProcessor", {"size": 16, "do_center_crop": True, "crop_size": 16},
        {"crop_mode": "center", "crop_fraction": 1.0}),
    "share": ("ConvNextImageProcessor", {"size": {"shortest_edge": 16}, "crop_pct": 0.8},
        {"crop_mode": "center", "crop_fraction": 0.8}),
    "not normalized": ("SiglipImageProcessor", {"size": {"height": 16, "width": 16}, "do_normalize": False},
        {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
}  # fmt: skip


def processed(case: str, folder: Path) -> Any:
    """The preprocessing of a model whose folder has the processor's file; other than each family's own."""
    kind, config, _ = PROCESSORS[case]
    write(folder, zoo.create("vit_small_patch16_224", **VIT), {})
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind, **config}))
    return zoo.preprocess(zoo.create("vit_small_patch16_224", weights=folder, **VIT))


def test_what_an_image_processor_writes_is_read(tmp_path: Path) -> None:
    for number, (case, (_, _, fields)) in enumerate(PROCESSORS.items()):
        (folder := tmp_path / str(number)).mkdir()
        found = processed(case, folder)
        assert {name: getattr(found, name) for name in fields} == fields, case
    (folder / "preprocessor_config.json").write_text('{"resample": 1, "size": {"height": 16, "width": 8}}')
    with pytest.warns(
        UserWarning, match=r"preprocessor_config\.json of .* has resample=1, size=.*, which is not compared"
    ):
        zoo.create("vit_small_patch16_224", weights=folder, **VIT)
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(zoo.WeightsError, match=r"preprocessor_config\.json of .* is damaged"):
        zoo.create("vit_small_patch16_224", weights=folder, **VIT)


@pytest.mark.full
@pytest.mark.reference
@pytest.mark.parametrize("case", PROCESSORS)
def test_images_are_prepared_as_by_the_processor(case: str, tmp_path: Path) -> None:
    """On a smooth image, on which resamplings differ little and crops differ much."""
    importlib.import_module("tests.references.live")  # for torchvision, which the processors import
    transformers = pytest.importorskip("transformers")
    kind, config, _ = PROCESSORS[case]
    ours = processed(case, tmp_path)
    rows, columns = np.meshgrid(np.linspace(0, 3, 96), np.linspace(0, 4, 160), indexing="ij")
    image = np.stack(
        [127 * (1 + f(rows + k) * np.cos(columns - k)) for k, f in enumerate((np.sin, np.cos, np.sin))], -1
    ).astype(np.uint8)
    defaults = {} if "resample" in config else {"resample": {"bilinear": 2, "bicubic": 3}[ours.interpolation]}
    theirs = getattr(transformers, kind)(
        **{"image_mean": list(ours.mean), "image_std": list(ours.std), **defaults, **config}
    )
    expected = np.moveaxis(np.asarray(theirs(PIL.Image.fromarray(image), return_tensors="np")["pixel_values"]), 1, -1)
    found = ours(PIL.Image.fromarray(image))
    assert np.abs(found - expected).max() < 0.05 * np.ptp(expected)


@pytest.mark.parametrize(
    ("name", "options", "config", "message"),
    [
        (
            "vit_small_patch16_224",
            VIT,
            {"hidden_act": "relu"},
            "config.json of .* is of a model that vit_small_patch16_224 can't be: hidden_act='relu', which",
        ),
        (
            "bert_tiny",
            BERT,
            {"position_embedding_type": "relative_key"},
            "bert_tiny can't be: position_embedding_type='relative_key', which is none of",
        ),
        ("llama_nano", DECODER, {"model_type": "olmo2"}, "llama_nano can't be: model_type='olmo2', which is none of"),
        (
            "llama_nano",
            DECODER,
            {"model_type": "llama", "attention_bias": True},
            "llama_nano can't be: attention_bias=True, which is none of",
        ),
        (
            "llama_nano",
            DECODER,
            {"model_type": "llama", "rope_parameters": {"rope_type": "yarn"}},
            "llama_nano can't be: rope_type='yarn', which is none of",
        ),
        (
            "llama_nano",
            DECODER,
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
            "max_window_layers=1: here",
        ),
        (
            "gemma_nano",
            DECODER,
            {"model_type": "gemma2", "layer_types": ["full_attention", "sliding_attention"]},
            "full attention is not periodic",
        ),
        (
            "albert_nano",
            DECODER,
            {"num_hidden_groups": 2},
            "albert_nano can't be: num_hidden_groups=2, which is none of",
        ),
        (
            "delta_net_nano",
            DECODER,
            {"attn": {"layers": [1], "num_heads": 2}},
            "delta_net_nano can't be: attn={'layers'",
        ),
        (
            "gla_nano",
            DECODER,
            {"num_heads": 4, "num_kv_heads": 2},
            "gla_nano can't be: num_kv_heads=2: heads that share keys and values",
        ),
        (
            "mamba2_nano",
            MAMBA2,
            {"hidden_act": "gelu"},
            "mamba2_nano can't be: hidden_act='gelu', which is none of 'silu'",
        ),
    ],
)
def test_what_a_model_cannot_be_is_refused(
    name: str, options: dict[str, Any], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = zoo.create(name, **options)
    before = {n: np.asarray(leaf) for n, leaf in flatten(model).items()}
    folder = write(tmp_path, model, config)
    with pytest.raises(zoo.WeightsError, match=message):
        zoo.load(zoo.create(name, **options), folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(zoo.WeightsError, match=r"config\.json of .* is damaged"):
        zoo.load(model, folder)
    assert all(np.array_equal(before[n], leaf) for n, leaf in flatten(model).items())
