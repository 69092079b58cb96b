"""A model as one file that runs without the zoo: its forward pass with its weights, as StableHLO, by ``jax.export``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels import dispatch
from primitives import operations
from primitives.memory import size
from suggestions import near
from zoo.backbones.model import input_count
from zoo.quantization import without_copies
from zoo.summaries import own_input_shape

PLATFORMS = ("cpu", "cuda", "tpu")
"""Where an exported model runs unless fewer are asked for."""
_KNOWN_PLATFORMS = (*PLATFORMS, "rocm")
LIMIT = 2**31 - 2**20
"""The most bytes of weights that one file of ``jax.export`` can hold."""
# Primitives that call something outside StableHLO.
_CALLS = frozenset(
    (
        "pallas_call",
        "core_map",
        "mpmd_map",
        "ffi_call",
        "pure_callback",
        "io_callback",
        "debug_callback",
        "custom_partitioning",
    )
)


class ExportError(ValueError):
    """A model can't be exported; the message names the operation or the reason, and the remedy."""


def export(
    model: nnx.Module,
    form: Literal["stablehlo"] = "stablehlo",
    *,
    input_shape: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> jax.export.Exported:
    """Exports the forward pass ``model(x)``, in evaluation mode, with its weights and the portable implementation
    ("xla") of every op.

    ``exported.serialize()`` (of the package flatbuffers) gives the bytes of a file;
    ``jax.export.deserialize(data).call(x)`` runs them with JAX alone, and any program that reads StableHLO can.

    Args:
      model: takes float32 images (batch, height, width, channels) or int32 tokens (batch, length), an encoder-decoder
        those of a source and of a target; the exported function returns what the model returns.
      form: "stablehlo".
      input_shape: of one input, without the batch axis; default: the model's own.
      batch_size: the same for all calls; None allows any.
      platforms: those of "cpu", "cuda", "rocm" and "tpu" that it must run on; one file serves all.

    Raises:
      ExportError: an unknown form; no or unknown platforms; an operation that calls something outside StableHLO, which
        is named; code that needs a concrete batch size; or more weights than a file can hold (2 GiB).
      ValueError: the model's input shape is unknown, or the model does not take what ``input_shape`` says.
    """
    if form != "stablehlo":
        raise ExportError(f"unknown form {form!r}{near(form, ['stablehlo'])}: models are exported as 'stablehlo'")
    if batch_size is not None and batch_size < 1:
        raise ExportError(f"batch_size must be at least 1, got {batch_size}")
    if not platforms or (strange := sorted(set(platforms) - set(_KNOWN_PLATFORMS))):
        fault = f"{strange[0]!r} is no platform" if platforms else "platforms is empty"
        raise ExportError(f"{fault}: a model is exported for some of {', '.join(_KNOWN_PLATFORMS)}")
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(without_copies(nnx.state(model))))
    if held > LIMIT:
        raise ExportError(
            f"the weights take {size(held)}, and a file holds 2 GiB: make the model with "
            'param_dtype="bfloat16", or a smaller one'
        )
    shape = own_input_shape(model) if input_shape is None else tuple(input_shape)
    dtype = jnp.int32 if len(shape) == 1 else jnp.float32
    (batch,) = jax.export.symbolic_shape("batch") if batch_size is None else (batch_size,)
    graphdef, state = nnx.split(model)
    state = without_copies(state)

    def forward(*x: jax.Array) -> Any:
        copy = nnx.merge(graphdef, state)
        copy.eval()
        return copy(*x)

    if input_shape is not None:  # an input that the model refuses is the model's error, not one of exporting
        jax.eval_shape(forward, *[jax.ShapeDtypeStruct((1, *shape), dtype)] * input_count(model))
    given = [jax.ShapeDtypeStruct((batch, *shape), dtype)] * input_count(model)
    with dispatch.use("xla"), _told(batch_size is None):
        program = jax.jit(forward)
        if calls := sorted(set(_calls(program.trace(*given).jaxpr))):
            raise ExportError(
                f"{', '.join(calls)} calls something outside StableHLO, which no file can hold: "
                "use a mixer without such calls"
            )
        return jax.export.export(program, platforms=list(platforms))(*given)


def serialized(exported: jax.export.Exported) -> bytes:
    """The bytes of an exported model as a file.

    Raises:
      ExportError: flatbuffers, the package that writes them, is missing.
    """
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise ExportError("writing a file needs flatbuffers: python -m pip install -e '.[export]'") from error


@contextlib.contextmanager
def _told(open_batch: bool) -> Iterator[None]:
    """Turns JAX's errors about a model that it can't export into an :class:`ExportError`."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # of many types: symbolic sizes, lowering, custom calls
        said = " ".join(str(error).split())[:300]
        if open_batch:
            raise ExportError(
                f"the model can't be exported for any batch: give batch_size=. JAX says {type(error).__name__}: {said}"
            ) from error
        raise ExportError(f"JAX can't export the model, {type(error).__name__}: {said}") from error


def _calls(jaxpr: Any) -> Iterator[str]:
    """Names of the operations in a program that call something outside StableHLO."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name = equation.primitive.name
        if name in _CALLS:
            info = (
                equation.params.get("name_and_src_info")
                or equation.params.get("target_name")
                or equation.params.get("callback")
            )
            yield f"{name} ({getattr(info, 'name', info)})" if info is not None else name
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from _calls(inner)
        if (program := operations.computed(equation)) is not None:
            yield from _calls(program)
