"""FocalNet against timm with random weights: logits, features, gradients, names, sizes, released checkpoints."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import zoo
from layers import flatten
from tests.references.live import images, ours_and_gradient, outputs_and_gradient, randomise, relative, same_bits, timm, torch
from tests.tiers import tiered
from zoo.naming import plan
from zoo.registry import abstract, variant
from zoo.weights import export

pytestmark = pytest.mark.reference

TOLERANCE = 1e-5
PUBLISHED = [name for name in zoo.list_models("focalnet_*") if variant(name).published]
# What a small model and a huge one, which has all that the large ones differ in, are in timm.
KINDS: dict[str, dict[str, Any]] = {
    "focalnet_tiny_lrf": {"focal_levels": (3, 3)},
    "focalnet_huge_fl4": {
        "focal_levels": (4, 4),
        "use_post_norm": True,
        "use_post_norm_in_modulation": True,
        "use_overlap_down": True,
        "layerscale_value": 1e-4,
        "normalize_modulator": True,
    },
}


def pair(name: str) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """timm's model and ours, narrow and shallow, with the same random weights."""
    theirs = timm.models.focalnet.FocalNet(embed_dim=16, depths=(1, 1), num_classes=10, **KINDS[name])
    state = randomise(theirs)
    options = {"features": (16, 32), "depths": (1, 1), "num_heads": (1, 1), "num_classes": 10}
    ours = zoo.create(name, **options, normalize_modulator="normalize_modulator" in KINDS[name])
    zoo.load(ours, state)
    return theirs, ours, state


@pytest.mark.parametrize("name", tiered(KINDS, lambda name: name == "focalnet_tiny_lrf"))
def test_matches_timm(name: str, record_property: Any) -> None:
    """On images that no stride divides; and timm reads our file of the authors' names."""
    theirs, ours, state = pair(name)
    x = images(2, 37, 50, 3)

    def reference(x: Any) -> list[Any]:
        return [theirs(x), *theirs.forward_intermediates(x, intermediates_only=True)]

    expected, gradient = outputs_and_gradient(reference, x)
    expected = [expected[0], *[feature.transpose(0, 2, 3, 1) for feature in expected[1:]]]
    found, our_gradient = ours_and_gradient(lambda x: [ours(x), *ours.features(x)], x)
    difference = max(relative(a, b) for a, b in zip([*found, our_gradient], [*expected, gradient], strict=True))
    row = {"architecture": name, "reference": f"timm {timm.__version__}", "kind": "live", "mapped": len(state), "difference": difference}
    record_property("parity", row)
    assert difference < TOLERANCE
    assert same_bits(export(ours, naming="timm"), state)

    from timm.models.focalnet import checkpoint_filter_fn

    authors = {key: torch.from_numpy(value.copy()) for key, value in export(ours, naming="focalnet").items()}
    assert same_bits({key: value.numpy() for key, value in checkpoint_filter_fn(authors, theirs).items()}, state)


@pytest.mark.full
def test_whole_model_matches_timm(tmp_path: Any) -> None:
    """Not reduced, and through a file that timm's own code loads."""
    theirs = timm.create_model("focalnet_tiny_srf")
    state = randomise(theirs)
    ours = zoo.create("focalnet_tiny_srf", weights=state)
    x = images(1, 224, 224, 3)
    with torch.no_grad():
        assert relative(jax.jit(ours)(x), theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()) < TOLERANCE
    zoo.save(ours, tmp_path / "focalnet.safetensors")
    again = timm.create_model("focalnet_tiny_srf", checkpoint_path=str(tmp_path / "focalnet.safetensors"))
    assert same_bits({k: v.numpy() for k, v in again.state_dict().items()}, state)


@pytest.mark.parametrize("name", tiered(PUBLISHED, lambda name: name in KINDS))
def test_names_sizes_and_releases_are_those_of_timm(name: str) -> None:
    """Of every variant, without allocating it."""
    from timm.models.focalnet import default_cfgs

    entry = variant(name)
    with torch.device("meta"):
        theirs = timm.create_model(name)
    entries = plan(entry.rules["timm"], {name: tuple(leaf.shape) for name, leaf in flatten(abstract(entry, entry.config)).items()}, entry.config)
    shapes = {name: shape for line in entries for name, shape in line.released_shapes().items()}
    assert shapes == {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert sum(p.numel() for p in theirs.parameters()) == entry.parameters
    tagged = default_cfgs[name].cfgs
    assert list(entry.releases) == list(tagged)
    for tag, release in entry.releases.items():
        cfg = tagged[tag]
        assert (release.source, release.classes, release.licence) == (f"hf://timm/{name}.{tag}", cfg.num_classes, cfg.license)
        images_as = {"mean": cfg.mean, "std": cfg.std, "interpolation": cfg.interpolation, "crop_fraction": cfg.crop_pct}
        assert release.preprocess == {**images_as, "crop_mode": cfg.crop_mode or "center"}
        assert zoo.preprocess(name).image_size == cfg.input_size[-1]


def test_variants_are_those_of_timm() -> None:
    assert set(PUBLISHED) == set(timm.list_models("focalnet_*"))
