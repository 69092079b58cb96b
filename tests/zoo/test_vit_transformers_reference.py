"""ViT against transformers with random weights: logits, features, names, other sizes of image."""

from __future__ import annotations

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.compilation import program
from tests.references.live import (
    images,
    largest_difference,
    randomize,
    relative,
    released,
    same_bits,
    torch,
)
from tests.tiers import tiered
from zoo.weights import export

pytestmark = pytest.mark.reference

TOLERANCE = 5e-6
PIXELS = 56
DEPTH = 2
SIZE: dict[str, Any] = {
    "depth": DEPTH, "features": 32, "num_heads": 2, "image_size": PIXELS, "patch_size": 14, "num_classes": 10
}  # fmt: skip

transformers = pytest.importorskip("transformers", reason="the reference implementation needs transformers")


def _size(**more: Any) -> dict[str, Any]:
    common = {
        "hidden_size": 32,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 2,
        "image_size": PIXELS,
        "patch_size": 14,
        "num_labels": 10,
    }
    return {**common, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **more}


_VIT = _size(intermediate_size=128, layer_norm_eps=1e-6)
_TOWER = {**_VIT, "layer_norm_eps": 1e-5, "projection_dim": 10}
_BARE = {"num_classes": 0}
# Our name, their class and its configuration, what ours differs in, and the naming of the file.
TRANSFORMERS: list[tuple[str, str, dict[str, Any], dict[str, Any], str]] = [
    ("vit_small_patch16_224", "ViTForImageClassification", _VIT, {}, "transformers"),
    ("vit_small_patch16_224", "ViTModel", _VIT, _BARE, "bare"),
    ("deit_small_distilled_patch16_224", "DeiTForImageClassificationWithTeacher", _VIT, {}, "transformers"),
    ("deit_small_distilled_patch16_224", "DeiTForImageClassification", _VIT, {}, "transformers_single"),
    ("deit_small_distilled_patch16_224", "DeiTModel", _VIT, _BARE, "bare"),
    ("vit_small_patch14_dinov2", "Dinov2Model", _size(), _BARE, "bare"),
    ("vit_small_patch14_dinov2", "Dinov2Backbone", _size(), _BARE, "bare"),
    (
        "vit_small_patch14_dinov2",
        "Dinov2ForImageClassification",
        _size(),
        {"pool": "token_and_average"},
        "transformers",
    ),
    ("vit_small_patch14_reg4_dinov2", "Dinov2WithRegistersModel", _size(num_register_tokens=4), _BARE, "bare"),
    ("vit_small_patch14_reg4_dinov2", "Dinov2WithRegistersBackbone", _size(), _BARE, "bare"),
    (
        "vit_small_patch14_reg4_dinov2",
        "Dinov2WithRegistersForImageClassification",
        _size(),
        {"pool": "token_and_average"},
        "transformers",
    ),
    (
        "vit_giant_patch14_reg4_dinov2",
        "Dinov2WithRegistersModel",
        _size(use_swiglu_ffn=True),
        {**_BARE, "mlp_ratio": 88 / 32},
        "bare",
    ),
    ("vit_base_patch16_clip_224", "CLIPVisionModel", {**_TOWER, "hidden_act": "gelu"}, _BARE, "bare"),
    ("vit_base_patch32_clip_quickgelu_224", "CLIPVisionModelWithProjection", _TOWER, {}, "transformers"),
    ("vit_base_patch32_siglip_256", "SiglipVisionModel", _VIT, _BARE, "bare"),
]


@pytest.mark.parametrize(
    ("name", "kind", "size", "options", "naming"),
    tiered(TRANSFORMERS, lambda row: row[1] in ("ViTForImageClassification", "CLIPVisionModelWithProjection")),
    ids=[row[1] for row in TRANSFORMERS],
)
def test_matches_transformers(
    name: str,
    kind: str,
    size: dict[str, Any],
    options: dict[str, Any],
    naming: str,
    tmp_path: Any,
    record_property: Any,
) -> None:
    cls = getattr(transformers, kind)
    theirs = cls(cls.config_class(**size))
    randomize(theirs)
    state = released(theirs, tmp_path)
    ours_options = {**SIZE, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings(
            "ignore", ".*this one has become such a model"
        )  # a file's form that is adopted is reported
        ours = zoo.create(name, weights=tmp_path, **ours_options)
    ours.eval()
    pixels = images(2, PIXELS, PIXELS, 3)
    backbone = kind.endswith("Backbone")

    def call(x: Any) -> list[Any]:
        out = theirs(x, output_hidden_states=True)
        first = (
            out.feature_maps[0].permute(0, 2, 3, 1)
            if backbone
            else next(out[key] for key in ("logits", "image_embeds", "pooler_output") if key in out)
        )
        return [first, *out.hidden_states[1:]]

    def found_by(x: Any) -> list[Any]:
        tokens = [jnp.concatenate([p, m.reshape(2, -1, 32)], 1) for m, p in ours.features(x, range(DEPTH), prefix=True)]
        first = ours.norm(ours.features(x, [-1])[0]) if backbone else ours(x)
        return [first, *tokens]

    difference = largest_difference(call, found_by, pixels, gradient=False)  # test_vit_reference.py has the gradients
    reference = f"transformers {transformers.__version__} {kind}"
    record_property(
        "parity",
        {
            "architecture": name,
            "reference": reference,
            "kind": "live",
            "mapped": len(state),
            "difference": difference,
        },
    )
    assert difference < TOLERANCE
    assert same_bits(export(ours, naming=naming), state)


# Our name, their class and its configuration, what ours differs in, and sizes other than those of the table.
OTHER_SIZES: list[tuple[str, str, dict[str, Any], dict[str, Any], list[tuple[int, int]]]] = [
    ("vit_small_patch14_dinov2", "Dinov2Model", _size(image_size=518), {"image_size": 518}, [(224, 224), (252, 336)]),
    ("vit_giant_patch14_dinov2", "Dinov2Model", _size(use_swiglu_ffn=True), {"mlp_ratio": 88 / 32}, [(28, 42)]),
    (
        "vit_small_patch14_reg4_dinov2",
        "Dinov2WithRegistersModel",
        _size(image_size=518),
        {"image_size": 518},
        [(224, 224), (252, 336)],
    ),
    ("vit_small_patch16_224", "ViTModel", _VIT, {"antialias": False}, [(28, 42)]),
    ("deit_small_distilled_patch16_224", "DeiTModel", _VIT, {"antialias": False}, [(28, 42)]),
    (
        "vit_base_patch16_clip_224",
        "CLIPVisionModel",
        {**_TOWER, "hidden_act": "gelu"},
        {"antialias": False},
        [(28, 42)],
    ),
    ("vit_base_patch32_siglip_256", "SiglipVisionModel", _VIT, {"antialias": False}, [(28, 42)]),
]


@pytest.mark.parametrize(
    ("name", "kind", "size", "options", "others"),
    [
        pytest.param(*row, id=row[0], marks=() if row[0] == "vit_giant_patch14_dinov2" else pytest.mark.full)
        for row in OTHER_SIZES
    ],
)
def test_other_sizes_match_transformers(
    name: str, kind: str, size: dict[str, Any], options: dict[str, Any], others: list[Any], tmp_path: Any
) -> None:
    cls = getattr(transformers, kind)
    theirs = cls(cls.config_class(**size))
    randomize(theirs)
    released(theirs, tmp_path)
    ours_options = {**SIZE, "num_classes": 0, **options}
    ours = zoo.create(name, weights=tmp_path, **ours_options)
    ours.eval()
    asked = {} if name.endswith("dinov2") else {"interpolate_pos_encoding": True}
    for height, width in others:
        pixels = images(1, height, width, 3)
        with torch.no_grad():
            expected = theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), **asked).pooler_output.numpy()
        assert relative(program(ours)(pixels), expected) < 1e-5, (height, width)


def test_a_fresh_head_does_without_the_pooler(tmp_path: Any) -> None:
    """As fine-tuning has it in transformers, and in the paper; a pooler that was asked for is loaded."""
    state = released(transformers.ViTModel(transformers.ViTConfig(**_VIT)), tmp_path)
    message = "has no classifier: the head for 10 classes stays random"
    with pytest.warns(UserWarning, match=message):
        assert zoo.create("vit_small_patch16_224", weights=tmp_path, **SIZE).pooler is None
    with pytest.warns(UserWarning, match=message):
        asked = zoo.create("vit_small_patch16_224", weights=tmp_path, **SIZE, pooler=True)
    assert np.array_equal(asked.pooler.kernel[...], state["pooler.dense.weight"].T)


def test_the_image_tower_of_a_whole_clip_model(tmp_path: Any) -> None:
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 11,
        "max_position_embeddings": 4,
    }
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=_TOWER, text_config={**small, **ids}, projection_dim=10)
    )
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    ours = zoo.create("vit_base_patch32_clip_quickgelu_224", weights=tmp_path, **SIZE)
    pixels = images(1, PIXELS, PIXELS, 3)
    expected = theirs.get_image_features(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    expected = getattr(expected, "pooler_output", expected)
    assert relative(program(ours)(pixels), expected.detach().numpy()) < TOLERANCE
