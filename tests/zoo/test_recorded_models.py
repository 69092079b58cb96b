"""Image models against recorded outputs of their authors' code: logits, maps, gradients of the image, names, sizes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

import zoo
from tests.references import recording
from tests.references.comparing import ours_and_gradient, relative, same_bits
from tests.zoo.recorded_models import GRADIENTS, MODELS, SIZES, Row
from zoo.registry import variant
from zoo.weights import export

TOLERANCE = 1e-5


@pytest.mark.full
@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in MODELS])
def test_matches_the_authors(row: Row, record_property: Any) -> None:
    """And the weights come back bit for bit."""
    recorded = recording.Recording(row.script)
    buffers = {name: value for name, value in recorded.all.items() if row.buffers and row.buffers in name}
    state = recorded.weights(row.cases[0], sharpness=row.sharpness) | row.fixed()
    model: Any = zoo.create(row.name, weights={**state, **buffers}, **row.options)
    differences = []
    for case in row.cases:
        theirs = {name: value for name, value in recorded.arrays(case).items() if name not in buffers}
        theirs.pop("pos_embed", None)  # compared in test_t2t_vit.py
        theirs |= {"logits": theirs.pop("out")} if "out" in theirs else {}
        names: list[str] = []

        def outputs(x: jax.Array, names: list[str] = names) -> list[jax.Array]:
            found = {"logits": model(x), **row.outputs(model, x)}
            names[:] = found
            return list(found.values())

        if (row.name, case) in GRADIENTS.values():
            found, gradient = ours_and_gradient(outputs, recorded.images(case))
            made = {**dict(zip(names, found, strict=True)), "gradient": gradient}
        else:
            del theirs["gradient"]
            found = jax.jit(outputs)(recorded.images(case))
            made = dict(zip(names, found, strict=True))
        ours = recording.kept(made, row.script.KEPT)
        assert ours.keys() == theirs.keys()
        differences += [relative(value, theirs[name]) for name, value in ours.items()]
    about = {"reference": (row.reference and recorded.about[row.reference]) or recorded.named(), "kind": "recorded"}
    about |= {"architecture": row.name, "mapped": len(state)}
    record_property("parity", {**about, "difference": max(differences)})
    assert max(differences) < TOLERANCE
    written = export(model, naming=row.naming)
    for name, value in buffers.items():  # logarithms and powers of another library differ in their last bits
        np.testing.assert_allclose(written.pop(name), value, rtol=1e-6)
    assert {name for name in row.constants if written.pop(name, None) is not None} == set(row.constants)
    assert same_bits(written, state)


@pytest.mark.parametrize(("script", "start", "all_of"), [pytest.param(*row, id=row[0].__name__) for row in SIZES])
def test_sizes_are_those_of_the_authors(script: ModuleType, start: str, all_of: tuple[str, ...]) -> None:
    """The registry-driven tests compare ours with the declared counts."""
    counts = recording.Recording(script).about["counts"]
    # Of T2T-ViT those that are trained, and all.
    counts = {f"{start}{name}": n[0] if isinstance(n, list) else n for name, n in counts.items()}
    assert {name: variant(name).parameters for name in counts} == counts
    if all_of:
        published = {name for name in zoo.list_models() if name.startswith(all_of) and variant(name).published}
        assert published == counts.keys()
