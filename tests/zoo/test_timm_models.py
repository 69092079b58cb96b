"""Image models against timm with random weights: logits, maps, gradients, names, sizes, releases.

A family is a row of FAMILIES in ``tests/references/timm_models.py``; ViT and EVA-02 have files of their own.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import jax
import pytest

import zoo
from tests.references.live import (
    assert_listed_as_by_timm,
    assert_matches_timm,
    images,
    logits_of,
    randomize,
    relative,
    same_bits,
    timm,
    torch,
)
from tests.references.timm_models import FAMILIES, Family, pair
from zoo.registry import variant
from zoo.weights import export

pytestmark = pytest.mark.reference

SMALL = {name: family for family in FAMILIES.values() for name in family.small}
VARIANTS = {name: family for family in FAMILIES.values() for name in family.names()}


def module_of(family: Family) -> Any:
    return importlib.import_module(f"timm.models.{family.module}")


@pytest.mark.parametrize("name", list(SMALL))
def test_matches_timm(name: str, record_property: Any) -> None:
    """And where timm reads the authors' files, it reads ours of their names. The gradient is compared once a family:
    what else is in its other variants, the forward pass shows.
    """
    family = SMALL[name]
    theirs, ours, state = pair(name)
    maps = family.maps(name)
    row = family.row(name)
    pixels = images(*family.images)
    more = {"tolerance": family.tolerance, "gradient": name == next(iter(family.small)), **maps}
    assert_matches_timm(row, (theirs, ours, state), pixels, record_property, **more)
    if name in family.authors:
        authors = export(ours, naming=family.authors[name])
        assert not authors.keys() <= state.keys()
        tensors = {key: torch.from_numpy(value.copy()) for key, value in authors.items()}
        read = module_of(family).checkpoint_filter_fn(tensors, theirs)
        assert same_bits({key: value.numpy() for key, value in read.items()}, state)
        assert same_bits(export(zoo.load(ours, authors), naming="timm"), state)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.published])
def test_published_widths_match_timm(name: str, tmp_path: Path) -> None:
    """And its size of image, with few blocks, through a file that timm's own code loads."""
    family = FAMILIES[name]
    model, theirs_options, options = family.published or ("", {}, {})

    def make() -> Any:
        return family.make(model, **theirs_options).eval()

    theirs = make()
    state = randomize(theirs)
    ours: Any = zoo.create(model, weights=state, **options)
    pixels = images(1, *[variant(model).config.image_size] * 2, 3)  # type: ignore[attr-defined]
    assert relative(jax.jit(ours)(pixels), logits_of(theirs, pixels)) < family.tolerance
    zoo.save(ours, tmp_path / "model.safetensors", naming="timm")
    timm.models.load_checkpoint(again := make(), str(tmp_path / "model.safetensors"))
    assert same_bits({key: value.numpy() for key, value in again.state_dict().items()}, state)


def kind(name: str) -> str:
    """What a variant's names follow from, besides how wide and deep it is, and for which images."""
    sizes = {"features", "depths", "depth", "num_heads", "image_size", "num_classes", "drop_path", "widths", "window"}
    config = variant(name).config
    return repr({f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in sizes})


def first_of_kinds() -> set[str]:
    """The smallest variant of each kind."""
    smallest: dict[tuple[str, str], str] = {}
    for name in sorted(VARIANTS, key=lambda name: variant(name).parameters or 0):
        smallest.setdefault((variant(name).family, kind(name)), name)
    return set(smallest.values())


NAMED = first_of_kinds()


@pytest.mark.parametrize("name", list(VARIANTS))
def test_listed_as_by_timm(name: str) -> None:
    """Without allocating it; names are compared of one variant of each kind."""
    family = VARIANTS[name]
    reference = family.reference(name)
    assert variant(reference) is variant(name)
    assert_listed_as_by_timm(name, reference, module_of(family).default_cfgs, names=name in NAMED)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.listed])
def test_variants_are_those_of_timm(name: str) -> None:
    family = FAMILIES[name]
    theirs = {model for model in timm.list_models(family.listed) if model in module_of(family).default_cfgs}
    assert {family.reference(model) for model in family.names()} == theirs
