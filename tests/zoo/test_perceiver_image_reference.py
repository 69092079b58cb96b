"""Perceiver IO for images against transformers: random weights mapped by name, in both directions, and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import assign
from layers.state import flatten, flatten_state
from tests.references.live import images, randomize, relative, released, same_bits, torch, without_arrays
from zoo.registry import variant
from zoo.weights import export

transformers = pytest.importorskip("transformers", reason="the reference implementation needs transformers")

pytestmark = [pytest.mark.reference, pytest.mark.full]

TOLERANCE = 1e-4
THEIRS: dict[str, Any] = {
    "d_latents": 32, "num_latents": 5, "num_self_attends_per_block": 2, "num_blocks": 2, "num_self_attention_heads": 4,
    "num_cross_attention_heads": 1, "num_labels": 7,
}  # fmt: skip
OURS: dict[str, Any] = {"features": 32, "depth": 2, "num_heads": 4, "latents": 5, "rounds": 2, "num_classes": 7}
# Their class, the width of what latents read, which is theirs to say, and the size of the images.
KINDS = {"learned": ("Learned", 512, 8), "fourier": ("Fourier", 261, 9), "conv": ("ConvProcessing", 322, 24)}


def theirs_of(kind: str, **sizes: Any) -> Any:
    cls = getattr(transformers, f"PerceiverForImageClassification{KINDS[kind][0]}")
    return cls(cls.config_class(d_model=KINDS[kind][1], **sizes))


@pytest.mark.parametrize("kind", KINDS)
def test_matches_transformers(kind: str, tmp_path: Path, record_property: Any) -> None:
    """Logits and gradient of the pixels and of every parameter; names in and out bit for bit."""
    size = KINDS[kind][2]
    theirs = theirs_of(kind, **THEIRS, image_size=size)
    randomize(theirs)
    file = released(theirs, tmp_path)
    (tmp_path / "config.json").unlink()
    ours = zoo.create(f"perceiver_image_{kind}", weights=tmp_path, image_size=size, **OURS)
    assert same_bits(export(ours, naming="transformers"), file)
    pixels = images(2, size, size, 3)
    given = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).requires_grad_()
    expected = theirs(given).logits
    torch.sin(expected).sum().backward()
    graphdef, params, rest = nnx.split(ours, nnx.Param, ...)

    def loss(params: nnx.State, x: jax.Array) -> Any:
        found = nnx.merge(graphdef, params, rest, copy=True)(x)
        return jnp.sin(found).sum(), found

    (gradients, of_pixels), found = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, pixels)
    carrier = nnx.clone(ours)
    assign(carrier, flatten_state(gradients))
    slopes = export(carrier, naming="transformers")
    wanted = {key: value.grad.numpy() for key, value in theirs.named_parameters()}
    differences = {"logits": relative(found, expected.detach().numpy())}
    differences["pixels"] = relative(of_pixels, given.grad.numpy().transpose(0, 2, 3, 1))
    # The gradient of a key's bias is 0 but for rounding.
    differences |= {key: relative(slopes[key], value) for key, value in wanted.items() if np.abs(value).max() > 1e-5}
    about = {"reference": f"transformers {transformers.__version__}", "kind": "live", "mapped": len(file)}
    record_property("parity", {**about, "architecture": ours.variant, "difference": max(differences.values())})
    assert {key: value for key, value in differences.items() if value >= TOLERANCE} == {}


@pytest.mark.parametrize("kind", KINDS)
def test_counted_as_by_transformers(kind: str) -> None:
    """As released."""
    sizes = {"d_latents": 1024, "num_latents": 512, "num_self_attends_per_block": 6, "num_blocks": 8}
    with without_arrays():
        theirs = theirs_of(
            kind, **sizes, image_size=224, num_labels=1000, num_self_attention_heads=8, num_cross_attention_heads=1
        )
    made: Any = zoo.creation.create_abstract(f"perceiver_image_{kind}")
    count = sum(leaf.size for leaf in flatten(made, nnx.Param).values())
    assert sum(p.numel() for p in theirs.parameters()) == variant(made.variant).parameters == count
