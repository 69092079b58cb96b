"""ViT against timm with random weights: logits, features, gradients, names, sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flax import nnx

import zoo
from layers import parameter_count
from tests.compilation import program
from tests.references.live import (
    assert_matches_timm,
    images,
    largest_difference,
    logits_of,
    randomize,
    relative,
    same_bits,
    timm,
    torch,
    without_arrays,
)
from tests.tiers import tiered
from zoo.registry import abstract, configure, variant
from zoo.weights import export

pytestmark = pytest.mark.reference

TOLERANCE = 5e-6
PIXELS = 56
DEPTH = 2
SIZE: dict[str, Any] = {
    "depth": DEPTH, "features": 32, "num_heads": 2, "image_size": PIXELS, "patch_size": 14, "num_classes": 10
}  # fmt: skip

# Plain ViTs of timm that this zoo does not have, and why.
LEFT_OUT = {
    "an image size that the patch does not divide, so that timm drops pixels; the _378 models are the same": (
        "vit_so400m_patch14_siglip_384",
        "vit_so400m_patch14_siglip_gap_384",
    ),
}


def _timm_names() -> list[str]:
    from timm.models._registry import _model_to_module

    return [
        name
        for name in timm.list_models()
        if name.startswith(("vit_", "deit")) and _model_to_module[name] in ("vision_transformer", "deit")
    ]


def _our_names() -> list[str]:
    return [name for name in zoo.list_models() if variant(name).family == "vit" and variant(name).published]


def test_variants_are_those_of_timm() -> None:
    ours = set(_our_names())
    left = {name for names in LEFT_OUT.values() for name in names}
    assert ours | left == set(_timm_names())
    assert not ours & left


@pytest.mark.full
def test_sizes_are_those_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variant at depth 1, and its depth: the parameter counts follow."""
    from timm.models.vision_transformer import VisionTransformer

    depths: dict[str, int] = {}
    original = VisionTransformer.__init__

    def shallow(self: Any, *args: Any, depth: int = 12, **options: Any) -> None:
        depths["timm"] = depth
        original(self, *args, depth=1, **options)

    monkeypatch.setattr(VisionTransformer, "__init__", shallow)
    wrong = []
    for name in _our_names():
        with without_arrays():
            theirs = timm.create_model(name)
        entry = variant(name)
        ours = abstract(entry, configure(entry, {"depth": 1}))
        sizes = (parameter_count(ours), entry.config.depth, entry.config.num_heads, entry.config.image_size)
        block = theirs.blocks[0]
        attention = block.attns[0].attn if hasattr(block, "attns") else getattr(block, "attn", block)
        expected = (
            sum(p.numel() for p in theirs.parameters()),
            depths["timm"],
            attention.num_heads,
            theirs.patch_embed.img_size[0],
        )
        wrong += [f"{name}: {sizes}, timm {expected}"] if sizes != expected else []
    assert not wrong


@pytest.mark.parametrize(
    ("name", "count"), [("vit_tiny_patch16_224", 5_717_416), ("vit_small_patch14_reg4_dinov2", 22_057_344)]
)
def test_whole_counts(name: str, count: int) -> None:
    entry = variant(name)
    assert parameter_count(abstract(entry, entry.config)) == count


def test_releases_are_those_of_timm() -> None:
    """Source, classes, license and preprocessing of every released checkpoint that is listed."""
    from timm.models.deit import default_cfgs as of_deit
    from timm.models.vision_transformer import default_cfgs as of_vit

    wrong = []
    for name in _our_names():
        for tag, release in variant(name).releases.items():
            cfg = {**of_vit, **of_deit}[name].cfgs[tag]
            stated = {
                "mean": cfg.mean,
                "std": cfg.std,
                "interpolation": cfg.interpolation,
                "crop_fraction": cfg.crop_pct,
            }
            expected = (f"hf://timm/{name}.{tag}", cfg.num_classes, {**stated, "crop_mode": cfg.crop_mode or "center"})
            found = (release.source, release.classes, release.preprocess)
            wrong += [f"{name}.{tag}: {found}, timm {expected}"] if found != expected else []
    assert not wrong


# One of each kind; the comparison makes them small.
KINDS = [
    "vit_small_patch8_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_giant_patch14_reg4_dinov2",
    "vit_base_patch16_clip_224",
    "vit_base_patch32_clip_quickgelu_224",
    "vit_base_patch32_siglip_256",
    "vit_medium_patch16_gap_256",
    "vit_wee_patch16_reg1_gap_256",
    "vit_so150m_patch16_reg4_map_256",
    "vit_base_patch16_radio_v3",
    "vit_base_patch16_224_miil",
    "vit_small_patch16_18x2_224",
    "vit_base_patch16_xp_224",
    "vit_base_patch16_rpn_224",
    "vit_pwee_patch16_reg1_gap_256",
    "vit_dwee_patch16_reg1_gap_256",
    "vit_dpwee_patch16_reg1_gap_256",
]
# Between them the quick ones have all kinds of blocks.
QUICK = (
    "deit3_small_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_18x2_224",
    "vit_dpwee_patch16_reg1_gap_256",
)


def _pair(name: str) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """timm's model and ours, narrow and shallow, with the same random weights."""
    config = variant(name).config
    theirs = timm.create_model(
        name,
        depth=DEPTH,
        embed_dim=32,
        num_heads=2,
        img_size=PIXELS,
        patch_size=14,
        num_classes=10,
        dynamic_img_size=True,
        mlp_ratio=config.mlp_ratio * (2 if config.mlp == "swiglu" else 1),
    )
    state = randomize(theirs)
    ours = zoo.create(name, **SIZE)
    ours.eval()
    return theirs, ours, state


@pytest.mark.parametrize("name", tiered(KINDS, lambda name: name in QUICK))
def test_matches_timm(name: str, record_property: Any) -> None:
    """The gradient too where all kinds of blocks are."""
    assert_matches_timm(
        name,
        _pair(name),
        images(2, PIXELS, PIXELS, 3),
        record_property,
        tolerance=TOLERANCE,
        gradient=name in QUICK,
        indices=range(DEPTH),
        blocks=range(DEPTH),
    )


def test_another_input_size_matches_timm() -> None:
    theirs, ours, state = _pair("vit_small_patch14_reg4_dinov2")
    zoo.load(ours, state)
    pixels = images(1, 84, 42, 3)
    assert relative(program(ours)(pixels), logits_of(theirs, pixels)) < TOLERANCE


@pytest.mark.parametrize("larger", [True, False])
def test_resampled_position_table_matches_timm(larger: bool) -> None:
    _, _, state = _pair("vit_small_patch16_224")
    size = 98 if larger else 28
    ours = zoo.create("vit_small_patch16_224", **{**SIZE, "image_size": size})
    with pytest.warns(
        UserWarning, match=rf"position.table was made for a grid of 4x4 and is resampled to {size // 14}x{size // 14}"
    ):
        zoo.load(ours, state)
    resized = timm.create_model(
        "vit_small_patch16_224", depth=DEPTH, embed_dim=32, num_heads=2, img_size=size, patch_size=14, num_classes=10
    )
    from timm.models.vision_transformer import checkpoint_filter_fn

    resized.load_state_dict(checkpoint_filter_fn({k: torch.from_numpy(v) for k, v in state.items()}, resized))
    resized.eval()
    pixels = images(1, size, size, 3)
    assert relative(program(ours)(pixels), logits_of(resized, pixels)) < TOLERANCE


@pytest.mark.filterwarnings("ignore:patch_embed.kernel was made for images")
@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_kernels_for_other_channels_match_timm(channels: int) -> None:
    """As timm makes of released ones, for models with ``in_chans``."""
    from timm.models._manipulate import adapt_input_conv

    _, _, state = _pair("vit_small_patch16_224")
    model = zoo.load(zoo.create("vit_small_patch16_224", in_channels=channels, **SIZE), state)
    adapted = adapt_input_conv(channels, torch.from_numpy(state["patch_embed.proj.weight"])).numpy()
    assert relative(export(model)["patch_embed.proj.weight"], adapted) < 1e-6


@pytest.mark.full
def test_whole_model_matches_timm(tmp_path: Any) -> None:
    """Not reduced, and through a file that timm's own code loads."""
    theirs = timm.create_model("vit_tiny_patch16_224")
    state = randomize(theirs)
    ours = zoo.create("vit_tiny_patch16_224", weights=state)
    pixels = images(1, 224, 224, 3)
    assert relative(program(ours)(pixels), logits_of(theirs, pixels)) < TOLERANCE
    zoo.save(ours, tmp_path / "vit.safetensors")
    again = timm.create_model("vit_tiny_patch16_224", checkpoint_path=str(tmp_path / "vit.safetensors"))
    assert same_bits({k: v.numpy() for k, v in again.state_dict().items()}, state)


@pytest.mark.parametrize(
    ("model", "naming"),
    [("vit_small_patch16_224", "vision_transformer"), ("vit_base_patch16_siglip_224", "big_vision")],
)
def test_npz_of_ours_loads_in_timm(model: str, naming: str, tmp_path: Any, record_property: Any) -> None:
    """The JAX namings, read by timm's converter: outputs equal."""
    theirs, ours, state = _pair(model)
    zoo.load(ours, state)
    zoo.save(ours, tmp_path / "vit.npz", naming=naming)
    randomize(theirs, seed=5)
    with torch.no_grad():
        theirs.load_pretrained(str(tmp_path / "vit.npz"))
        theirs.head.load_state_dict({name: torch.from_numpy(state[f"head.{name}"]) for name in ("weight", "bias")})
    loaded = {k: v.numpy() for k, v in theirs.state_dict().items()}
    different = [k for k in state if not np.array_equal(state[k], loaded[k])]
    assert not different
    again = zoo.create(model, weights=tmp_path / "vit.npz", **SIZE)
    assert same_bits(export(again), state)
    _record_as_read_by_timm(record_property, again, theirs, naming)


def _record_as_read_by_timm(record_property: Any, ours: Any, theirs: Any, naming: str) -> None:
    """A row of the table, and its check: logits."""
    ours.eval()
    pixels = images(2, PIXELS, PIXELS, 3)
    difference = largest_difference(lambda x: [theirs(x)], lambda x: [ours(x)], pixels, gradient=False)
    reference = f"timm {timm.__version__}, {naming} names read by timm"
    row = {
        "architecture": ours.variant,
        "reference": reference,
        "kind": "live",
        "mapped": len(export(ours, naming=naming)),
        "difference": difference,
    }
    record_property("parity", row)
    assert difference < TOLERANCE


@pytest.mark.full
@pytest.mark.parametrize("model", ["vit_base_patch16_siglip_224", "vit_small_patch16_224"])
@pytest.mark.parametrize("naming", ["big_vision", "big_vision_scan"])
def test_big_vision_round_trip(model: str, naming: str) -> None:
    unplaced = {} if "siglip" in model else {"prefix_positions": "none"}
    options = {"depth": 3, "features": 32, "num_heads": 2, "image_size": 28, "patch_size": 14, "num_classes": 10}
    source = zoo.create(model, **options, **unplaced)
    arrays = export(source, naming=naming)
    ours = zoo.load(zoo.create(model, **options), arrays)
    assert same_bits(export(ours, naming=naming), arrays)
    pixels = images(1, 28, 28, 3)
    assert np.array_equal(program(ours)(pixels), program(source)(pixels))


@pytest.mark.parametrize(
    "name", ["deit3_small_patch16_224", "vit_base_patch16_clip_224", "vit_base_patch32_siglip_256"]
)
def test_other_families_resample_as_timm(name: str) -> None:
    theirs, ours, state = _pair(name)
    zoo.load(ours, state)
    pixels = images(1, 84, 42, 3)
    assert relative(program(ours)(pixels), logits_of(theirs, pixels)) < TOLERANCE


@pytest.mark.parametrize("gated", [False, True])
def test_facebook_names(gated: bool, record_property: Any) -> None:
    """The authors' file, as timm's own converter reads it."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    name = "vit_giant_patch14_reg4_dinov2" if gated else "vit_small_patch14_reg4_dinov2"
    options = {**SIZE, "num_classes": 0}
    whole = zoo.create(name, **options, mask_token=True, prefix_positions="class", rngs=nnx.Rngs(3))
    state = export(whole, naming="dinov2")
    assert {"mask_token", "register_tokens", "pos_embed"} <= set(state)
    assert ("blocks.0.mlp.w12.weight" in state) == gated
    ours = zoo.load(zoo.create(name, **options), state)
    assert same_bits(export(ours, naming="dinov2"), state)
    ratio = 16 / 3 if gated else 4.0
    theirs = timm.create_model(
        name, depth=DEPTH, embed_dim=32, num_heads=2, img_size=PIXELS, patch_size=14, num_classes=0, mlp_ratio=ratio
    )
    theirs.load_state_dict(checkpoint_filter_fn({k: torch.from_numpy(v.copy()) for k, v in state.items()}, theirs))
    theirs.eval()
    _record_as_read_by_timm(record_property, ours, theirs, "dinov2")
