"""Every mixer in every backbone: it runs, or the reason why it can't is stated."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import pytest
from flax import nnx

import layers
from tests.compilation import called
from tests.tiers import tiered
from tests.zoo.families import (
    BACKBONES,
    ENCODER_DECODERS,
    ENCODERS,
    FAMILIES,
    IMAGE_FAMILIES,
    POINTERS,
    SERIES,
    every,
    inputs,
    kind_of,
    one_stage,
    outline,
    shape_of,
)
from zoo.backbones.isotropic import Isotropic
from zoo.backbones.pyramid import Pyramid


def is_quick_cell(family: str, mixer: str) -> bool:
    return family == ("transformer" if layers.mixer_class(mixer).supports_causal else "vit")


def cells() -> list[Any]:
    """Every mixer in every backbone, of which one is quick; attention in every family, which may make blocks."""
    every = dict.fromkeys(
        [*itertools.product(BACKBONES.values(), layers.list_mixers()), *((family, "attention") for family in FAMILIES)]
    )
    return tiered(every, lambda cell: is_quick_cell(*cell))


@every
def test_backbone_is_in_the_matrix(family: str) -> None:
    assert family in (*POINTERS, *SERIES) or issubclass(kind_of(family), tuple(BACKBONES))


@pytest.mark.parametrize(("family", "mixer"), cells())
def test_every_mixer_in_every_backbone(family: str, mixer: str) -> None:
    """Each cell runs, or raises the stated reason. Gradients have mixers (tests/layers/test_mixers.py), and families
    with their own mixers (test_model_gradients.py).
    """
    cls = layers.mixer_class(mixer)
    # Two patches a side are enough for all but regions, of which a mixer may want up to seven a side.
    options = {"name": mixer, "regions": 2} if mixer == "bilevel_routing" else mixer
    if family in (*ENCODERS, *ENCODER_DECODERS) and "sequence" not in cls.layouts:
        with pytest.raises(ValueError, match=f"{cls.__name__} takes grids only"):
            outline(family, mixer=options, depth=1)
        return
    if family not in (*IMAGE_FAMILIES, *ENCODERS) and not cls.supports_causal:
        with pytest.raises(ValueError, match=f"{cls.__name__} is bidirectional only"):
            outline(family, mixer=options, depth=1)
        return
    if family in POINTERS:  # tests/zoo/test_pointer_network.py has those that it takes
        with pytest.raises(ValueError, match=f"that of {cls.__name__} grows with the length"):
            outline(family, mixer=options, depth=1)
        return
    # One map shows all of how a pyramid treats a mixer.
    sizes = one_stage(family) if issubclass(kind_of(family), Pyramid) else {"depth": 1}
    model = outline(family, mixer=options, **sizes)
    graphdef, state = nnx.split(model)
    out = jax.eval_shape(lambda state: called(nnx.merge(graphdef, state, copy=True), inputs(family)), state)
    assert out.shape[0] == shape_of(inputs(family))[0]
    if isinstance(model, Isotropic) and not {"sequence", "image"} & set(cls.layouts):
        assert model.prefix == 0
        assert model.pool == "average"
        assert "no prefix tokens, average pooling" in repr(model)
    if family in (*IMAGE_FAMILIES, *ENCODERS, *ENCODER_DECODERS) and not cls.supports_bidirectional:
        assert any(isinstance(module, layers.Bidirectional) for _, module in nnx.iter_modules(model))
