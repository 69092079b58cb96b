"""Layers on their own draw their parameters on the host, as models do: JAX compiles a program for each shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.initializers import Draw, Initializer, making

# Files whose subject is how parameters are drawn.
BY_JAX = ("test_initializers.py", "test_making.py")


@pytest.fixture(scope="module", autouse=True)
def draw_on_the_host(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.path.name in BY_JAX:
        yield
        return
    usual = Initializer.__call__

    def draw(self: Initializer, key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32, **options: Any) -> Any:
        if options or key is None or making.get() is not None or isinstance(key, jax.core.Tracer):
            return usual(self, key, shape, dtype, **options)
        seed = np.asarray(jax.random.key_data(key)).tobytes()
        return jnp.asarray(Draw(self, tuple(shape), np.dtype(dtype), key).numbers(seed, "parameter"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Initializer, "__call__", draw)
        yield
