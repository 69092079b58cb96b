"""Files that do not fit, over all families, and other libraries' ways to ask for weights: one message each, with the
remedy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flax import nnx

import zoo
from tests.tiers import tiered
from tests.zoo.families import BACKBONES, PARTS, tiny
from tests.zoo.test_weights import MODELS, equal, refused
from zoo.weights import export


@pytest.mark.parametrize("family", tiered(PARTS, lambda family: family in BACKBONES.values()))
def test_every_family_reports_what_does_not_fit(family: str) -> None:
    """A parameter missing, one too many, one of another shape, and another model's file: the strict report, under its
    first naming.
    """
    model: Any = tiny(family)
    arrays = export(model)
    first, last = min(arrays), max(arrays)
    read = f"the dictionary does not fit {model.variant}"
    assert f"; 1 missing: {first}; " in refused(model, {n: a for n, a in arrays.items() if n != first}, read)
    assert "; 1 unexpected: one.more; " in refused(model, {**arrays, "one.more": np.zeros(3)}, read)
    shape = tuple(arrays[last].shape)
    assert f"; 1 of another shape: {last} is {(7, *shape)}, the model has {shape}; " in refused(
        model, {**arrays, last: np.zeros((7, *shape))}, read
    )
    of_bert = family in ("bert", "bigbird", "lsg")  # whose names are the same
    other = arrays if of_bert else export(tiny("bert"))
    model = tiny("vit") if of_bert else model
    message = refused(model, other, f"does not fit {model.variant}")
    assert all(f" {fault}: " in message for fault in ("missing", "unexpected"))


def test_an_untied_head() -> None:
    """One released name is the second of the embedding in tied models, and the head's own in untied ones."""
    options = {"features": 32, "depth": 1, "vocab_size": 61}
    tied, untied = (zoo.create("mamba2_nano", **options, tied=tied) for tied in (True, False))
    arrays = export(untied)
    assert np.array_equal(arrays["lm_head.weight"], np.asarray(untied.head.kernel[...]).T)
    assert equal(zoo.load(zoo.create("mamba2_nano", **options, tied=False, rngs=nnx.Rngs(1)), arrays), untied)
    refused(
        tied,
        arrays,
        "lm_head.weight of the dictionary can't be read: they are one array in the model, and differ in the file: "
        ".*tied=False",
    )
    headless = {name: array for name, array in export(tied).items() if name != "lm_head.weight"}
    refused(untied, headless, "1 missing: lm_head.weight; the file has no head: make the model with tied=True")


def test_a_bare_encoder_says_what_to_pass() -> None:
    options = MODELS["bert_tiny"]
    bare = export(zoo.create("bert_tiny", **options, output="pooled"), naming="bare")
    refused(
        zoo.create("bert_tiny", **options),
        bare,
        'the file has no head over the vocabulary: make the model with output="pooled"',
    )
    refused(
        zoo.create("bert_tiny", **options, num_classes=3), bare, 'the file has no classifier: load it with head="reset"'
    )
    without = {name: array for name, array in bare.items() if "pooler" not in name}
    refused(
        zoo.create("bert_tiny", **options, output="pooled"),
        without,
        "the file has no pooler: make the model with pooler=False",
    )


def test_other_libraries_ways_to_ask_for_weights() -> None:
    """One message each, with the argument that does it."""
    with pytest.raises(
        ValueError,
        match=r'there is no pretrained=: .* zoo.create\("vit_tiny_patch16_224", weights="augreg_in21k_ft_in1k"\)',
    ):
        zoo.create("vit_tiny_patch16_224", pretrained=True)
    with pytest.raises(
        ValueError,
        match=r"no released checkpoint of mamba_130m is listed: .* takes a file, a folder or hf://owner/name",
    ):
        zoo.create("mamba_130m", pretrained=True)
    with pytest.raises(
        ValueError, match=r'unknown model .*: .*zoo.create\("vit_tiny_patch16_224", weights="augreg_in21k"\)$'
    ):
        zoo.create("vit_tiny_patch16_224.augreg_in21k")
    with pytest.raises(ValueError, match=r"its released checkpoints are: augreg_in21k_ft_in1k, augreg_in21k$"):
        zoo.create("vit_tiny_patch16_224.augreg_in22k")
    assert zoo.variant("mamba_1.4b").name == "mamba_1.4b"
