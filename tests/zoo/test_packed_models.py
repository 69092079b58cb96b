"""Documents that share a row of a language model are as if each had a row of its own, for every family that can; the
others say why not.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.layers.packing import Rows, both, read
from tests.layers.test_packing import TOLERANCE, close
from tests.tiers import tiered
from tests.zoo.families import PARTS, kind_of, make
from zoo.backbones.causal import Causal
from zoo.backbones.model import mixers

FORMS = [(family, {}) for family in PARTS if issubclass(kind_of(family), Causal)] + [
    ("transformer", {"position": "learned", "max_length": 32})
]


# Of float64 the mixers are proved one by one in tests/layers/test_packing.py.
@pytest.mark.parametrize(
    ("family", "options", "dtype"),
    tiered(
        [*((*form, np.float32) for form in FORMS), ("transformer", {}, np.float64)],
        lambda row: row == ("transformer", {}, np.float32),
    ),
    ids=lambda value: ("-".join(value) or "plain") if isinstance(value, dict) else getattr(value, "__name__", value),
)
def test_documents_of_a_row_are_as_if_alone(family: str, options: dict[str, Any], dtype: type) -> None:
    """Logits and gradients of whole rows, and logits of rows read piece by piece; tests/layers/test_mixers.py has each
    mixer. A model whose blocks are given nothing but tokens is traced.
    """
    model = make(family, **{"depth": 1, **options})
    parts = mixers(model.blocks)
    if not all("segment_ids" in mixer.honors for mixer in parts):
        with pytest.raises(ValueError, match=r"does not honor segment_ids: \w.{20,}"):
            model(jnp.zeros((1, 4), jnp.int32), segment_ids=jnp.zeros((1, 4), jnp.int32))
        return
    if family != "transformer" and model.per_block() is None and model.handed_on(jnp.zeros((1, 1, 16))) is None:
        ids = np.zeros((1, 2 * model.segment_multiple), np.int32)
        assert jax.eval_shape(lambda ids: nnx.clone(model)(ids, segment_ids=ids), ids).shape == (*ids.shape, 11)
        return
    rng = np.random.default_rng(0)
    rows = Rows.of(model.segment_multiple)
    tokens = rng.integers(0, 11, (2, rows.length)).astype(np.int32)
    weight = rng.standard_normal((2, rows.length, 11)).astype(dtype)
    with jax.enable_x64(dtype is np.float64):
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)

        def mix(params: Any, tokens: jax.Array, mask: jax.Array, ids: jax.Array | None) -> jax.Array:
            return nnx.merge(graph, params, rest, copy=True)(tokens, mask, segment_ids=ids)

        packed, alone = both(mix, rows, params, tokens, weight)
        close(packed, alone, TOLERANCE[dtype])

        @jax.jit
        def extend(tokens: jax.Array, state: Any, mask: jax.Array, ids: jax.Array | None) -> Any:
            return nnx.merge(graph, params, rest, copy=True).extend(tokens, state, mask, ids)

        state = model.init_state(2, max_length=rows.longest, dtype=dtype)
        np.testing.assert_allclose(
            read(extend, state, rows, tokens), alone[0], atol=TOLERANCE[dtype] * np.abs(alone[0]).max()
        )
