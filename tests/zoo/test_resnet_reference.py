"""ResNet against timm with random weights and statistics: logits, features, gradients, names, sizes, releases."""

from __future__ import annotations

from typing import Any

import pytest

import zoo
from tests.references.live import (
    assert_listed_as_by_timm,
    assert_matches_timm,
    assert_whole_model_matches_timm,
    images,
    randomize,
    relative,
    timm,
    torch,
)
from tests.tiers import tiered
from zoo.registry import variant
from zoo.weights import export

pytestmark = pytest.mark.reference

TOLERANCE = 5e-6
RELEASED = [
    name
    for name in zoo.list_models()
    if variant(name).family == "resnet" and variant(name).published and "timm" in variant(name).rules
]
CHANNELS = (8, 16, 24, 32)  # of timm's stages; those of bottlenecks are four times as wide
WIDE = tuple(4 * width for width in CHANNELS)
# Of each: timm's options, and ours.
SMALL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "resnet18": ({}, {"features": CHANNELS}),
    "resnet50": ({}, {"features": WIDE}),
    "resnet50d": ({"stem_width": 8}, {"features": WIDE, "stem": (8, 8, 16)}),
    "resnet18d": ({"stem_width": 8}, {"features": CHANNELS, "stem": (8, 8, 16)}),
    "resnet26t": ({"stem_width": 8}, {"features": WIDE, "stem": (6, 8, 16)}),
    "resnext50_32x4d": ({"cardinality": 4, "base_width": 32}, {"features": WIDE, "groups": 4, "width": 0.5}),
    "ecaresnet50t": ({"stem_width": 8}, {"features": WIDE, "stem": (6, 8, 16)}),
    "seresnet50": ({}, {"features": WIDE, "gate": {"name": "squeeze_excite", "hidden": 8}}),
}


def _small_pair(name: str, depths: tuple[int, ...] = (1, 2, 1, 1)) -> tuple[Any, Any, dict[str, Any]]:
    """timm's model and ours, narrow and shallow, with the same random weights and statistics."""
    theirs_options, options = SMALL[name]
    theirs = timm.create_model(name, channels=CHANNELS, layers=depths, num_classes=10, **theirs_options)
    if name == "seresnet50":  # timm rounds the hidden features to multiples of 8
        assert {module.fc1.out_channels for module in theirs.modules() if hasattr(module, "fc1")} == {8}
    ours = zoo.create(name, depths=depths, num_classes=10, **options)
    return theirs, ours, randomize(theirs)


@pytest.mark.parametrize("name", tiered(SMALL, ("resnet18", "resnet50d").__contains__))
def test_matches_timm(name: str, record_property: Any) -> None:
    """On a map whose sides are odd in most stages."""
    assert_matches_timm(
        name, _small_pair(name), images(2, 69, 77, 3), record_property, tolerance=TOLERANCE, indices=(1, 2, 3, 4)
    )


def test_batch_statistics_move_as_in_timm() -> None:
    """A training pass: what is normalized by, and what is kept for evaluation."""
    theirs, ours, state = _small_pair("resnet18", (1, 1, 1, 1))
    zoo.load(ours, state)
    x = images(4, 32, 32, 3)
    theirs.train()
    ours.train()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    assert relative(ours(x), expected) < 2e-5
    moved = {name: value.numpy() for name, value in theirs.state_dict().items() if "running_" in name}
    kept = export(ours, naming="timm")
    # torch keeps a 10th of the unbiased variance, which is n / (n - 1) of ours; n is at least 4, of the last maps.
    assert all(relative(kept[name], value) < 1e-5 for name, value in moved.items() if name.endswith("mean"))
    assert all(relative(kept[name], value) < 0.1 / 3 for name, value in moved.items())


@pytest.mark.full
def test_whole_model_matches_timm(tmp_path: Any) -> None:
    """Not reduced, and through a file that timm's own code loads."""
    assert_whole_model_matches_timm("resnet50", tmp_path / "model.safetensors", tolerance=TOLERANCE)


@pytest.mark.parametrize("name", tiered(RELEASED, lambda name: name == "resnet50"))
def test_names_sizes_and_releases_are_those_of_timm(name: str) -> None:
    from timm.models.resnet import default_cfgs

    assert_listed_as_by_timm(name, name, default_cfgs)
