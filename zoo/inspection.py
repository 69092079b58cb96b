"""Looking inside a model: what its modules report while it runs."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from layers.module import Diagnostic, collecting
from pallas_kernels import dispatch


def capture(model: nnx.Module, x: Any, name: str = "attention") -> dict[str, Any]:
    """Runs the model once more and returns what its modules sow under ``name``.

    The run is in evaluation mode and with the reference implementation of every op, which is the
    published equation; it is for looking at a few examples, its memory is quadratic in length. The
    model itself is unchanged.

    Args:
      model: any model or layer of the zoo, or an ``nnx.Module`` that contains some.
      x: its input, with the batch axis.
      name: of the sown values: "attention" is (batch, heads, queries, keys) or as the mixer says,
        "routes" the regions that bi-level routing picks.

    Returns:
      ``{path: value}``, for instance ``{"blocks.0.mixer.attention": ...}``.

    Raises:
      ValueError: nothing of that name is sown; what the model does sow is listed.
    """
    found = _sown(model, x, name)
    if not found:
        # The last part of a path is the name. Tracing shapes is enough: nothing is computed.
        names = sorted({path.rsplit(".", 1)[-1] for path in jax.eval_shape(lambda x: _sown(model, x, None), x)})
        has = f"it can capture: {', '.join(names)}" if names else "its modules report nothing"
        raise ValueError(f"the model sows nothing named {name!r}; {has}")
    return found


def _sown(model: nnx.Module, x: Any, name: str | None) -> dict[str, Any]:
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: nnx.State, x: Any) -> dict[str, Any]:
        copy = nnx.merge(graphdef, state)
        copy.eval()
        with dispatch.use("reference"), collecting(Diagnostic, name=name) as sown:
            copy(x)
        return sown.named(copy)

    return run(state, x)
