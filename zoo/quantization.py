"""Smaller weights for inference: int8 with a scale for each output, or bfloat16.

    zoo.quantize(model)                      # int8: about a quarter of the bytes
    zoo.quantize(model, keep_float=False)    # also in the memory of a CPU, where prompts then take longer
    zoo.save(model, "small.safetensors")
    model = zoo.create(NAME, weights="small.safetensors")    # no float weights are made on the way

Only weights are quantized, symmetrically: scale = max |w| / 127 over the inputs of one output (absmax quantization as
in LLM.int8(), Dettmers et al., 2022, arXiv:2208.07339, without its quantized inputs). Which parameters are quantized is
decided by their names and shapes, :func:`layers.quantized.axis_of`, so it is the same for every family.

On a CPU, products of many rows take longer with quantized weights than with float32 ones, so a float32 copy is kept
there beside the quantized weights unless ``keep_float=False``: as fast as float32, at the cost of more memory. Files,
exported programs and other platforms have no copies.

In a file a quantized array NAME is int8 with ``NAME.scale`` beside it, or the bits of bfloat16 as uint16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from layers.lora import adapters
from layers.quantized import axis_of, format_of, hold, quantized_arrays
from layers.state import flatten, variables
from primitives import memory
from primitives.platform import current_platform
from primitives.quantized import FORMATS, QuantizedArray, finite, quantized
from suggestions import near
from zoo.sources import Tensor, Tensors, WeightsError

SCALE = ".scale"


def quantize(model: Any, format: Literal["int8", "bfloat16"] | None = None, *, keep_float: bool | None = None) -> Any:
    """Stores the matrices of ``model`` in fewer bits, in place, and returns it, for inference only.

    These are the kernels of linear layers and of convolutions with at least 32 inputs, and embedding tables, including
    those tied to a head; all else stays as it is. The computation keeps its dtype.

    Args:
      model: any model, of the zoo or not, after its training.
      format: "int8", with a float32 scale for each output, or "bfloat16", the weights rounded to 8 bits of precision;
        None is "int8", or the present format of a quantized model.
      keep_float: whether a float32 copy of the quantized weights stays in memory, which products then read; None keeps
        one only on a CPU. False saves memory: weights are then widened a block at a time inside the products, and
        prompts take longer on a CPU. For a model that is already quantized, such as a loaded one, this makes or drops
        the copies.

    Raises:
      ValueError: an unknown format, a model that is already quantized without ``keep_float``, one that has adapters or
        nothing to quantize, or weights that are not finite. The model is unchanged.
    """
    before = format_of(model)
    if format is not None and format not in FORMATS:
        raise ValueError(f"unknown format {format!r}{near(str(format), FORMATS)}; there are: {', '.join(FORMATS)}")
    if before is not None and (keep_float is None or format not in (None, before)):
        raise ValueError(
            f"the model's weights are {before} already: quantize a model that has float weights, or say keep_float "
            "alone to make or drop the float32 copies"
        )
    if before is not None:
        return _with_copies(model, keep_float)
    if adapters(model):
        raise ValueError("the model has adapters: zoo.merge_lora(model) first, then zoo.quantize(model)")
    places = _places(model)
    chosen = {
        name: axis
        for name, leaf in flatten(model, nnx.Param).items()
        if name in places and (axis := axis_of(name, leaf)) is not None
    }
    if not chosen:
        raise ValueError(
            f"{type(model).__name__} has nothing to quantize: no kernel with at least 32 inputs and no table of "
            "embeddings with at least 32 features"
        )
    for name in chosen:  # checked for all first, so that no float matrices are kept to restore the model
        if not finite(getattr(*places[name])[...]):
            raise ValueError(f"{name} holds numbers that are not finite: there is no scale for them")
    for name, axis in chosen.items():
        hold(*places[name], quantized(getattr(*places[name])[...], format or "int8", axis))
    return _with_copies(model, keep_float)


def _with_copies(model: Any, keep_float: bool | None) -> Any:
    """The model, after its quantized arrays were given float32 copies or lost them; None decides by the platform."""
    keep = current_platform() == "cpu" if keep_float is None else keep_float
    places = _places(model)
    for name, array in quantized_arrays(model).items():
        if (array.copy is not None) != keep and not isinstance(array.values, jax.ShapeDtypeStruct):
            hold(*places[name], array.with_copy() if keep else array.without_copy())
    return model


def copies(model: nnx.Module) -> int:
    """Bytes of the float32 copies beside quantized parameters."""
    return sum(_bytes(array.copy) for array in quantized_arrays(model).values() if array.copy is not None)


def without_copies(state: Any) -> Any:
    """A state or arrays with no float32 copies beside quantized ones."""

    def small(leaf: Any) -> Any:
        return leaf.without_copy() if isinstance(leaf, QuantizedArray) else leaf

    return jax.tree.map(small, state, is_leaf=lambda leaf: isinstance(leaf, QuantizedArray))


def sizes(model: nnx.Module) -> tuple[int, int]:
    """Bytes of the parameters as stored in files, without :func:`copies`, and as they would be without quantization."""
    leaves = [*flatten(model, nnx.Param).values(), *quantized_arrays(model).values()]
    kept = sum(leaf.nbytes if isinstance(leaf, QuantizedArray) else _bytes(leaf) for leaf in leaves)
    return kept, sum(map(_bytes, leaves))


def described(model: nnx.Module) -> str | None:
    """The format and size of a quantized model in words, without copies in memory (see :func:`described_here`); None
    for another model.
    """
    kept, plain = sizes(model)
    format = format_of(model)
    return format and f"{format} weights: parameters of {memory.size(kept)}, without {memory.size(plain)}"


def described_here(model: nnx.Module) -> str | None:
    """As :func:`described`, with the float32 copies that are in this machine's memory."""
    said, count = described(model), copies(model)
    return said and said + (
        f"; beside them a float32 copy of {memory.size(count)} for speed on this CPU, which "
        "zoo.quantize(model, keep_float=False) drops"
        if count
        else ""
    )


def _bytes(leaf: Any) -> int:
    return int(leaf.size) * np.dtype(leaf.dtype).itemsize


def stored(model: nnx.Module) -> dict[str, np.ndarray]:
    """The arrays of a quantized model as a file holds them, under our names."""
    arrays: dict[str, np.ndarray] = {}
    for name, leaf in flatten(model).items():
        packed = isinstance(leaf, QuantizedArray)
        arrays[name] = np.asarray(leaf.values if packed else leaf)
        if packed and leaf.scale is not None:
            arrays[name + SCALE] = np.asarray(leaf.scale)
    return arrays


def joined(tensors: Tensors) -> Tensors:
    """The tensors of a file, with each quantized array as one tensor, which reads as a :class:`QuantizedArray`."""
    paired = [name for name in tensors if name + SCALE in tensors]
    scales = {name + SCALE for name in paired}
    whole = {name: tensor for name, tensor in tensors.items() if name not in scales}
    return whole | {
        name: dataclasses.replace(tensors[name], read=_reader(tensors[name], tensors[name + SCALE])) for name in paired
    }


def _reader(values: Tensor, scale: Tensor) -> Callable[[], Any]:
    return lambda: QuantizedArray(values.read(), scale.read(), np.float32)


def placed(name: str, array: Any, leaf: Any) -> QuantizedArray | None:
    """The array read for the parameter ``leaf``, on the device, if it is quantized; else None.

    Raises:
      WeightsError: it does not have the form of this parameter quantized, or the model is split over devices.
    """
    if isinstance(array, np.ndarray) and array.dtype == np.uint16:
        array = QuantizedArray(array, None, np.float32)
    if not isinstance(array, QuantizedArray):
        return None
    axis = None if leaf is None else axis_of(name, leaf)
    one = None if axis is None else tuple(1 if i == axis % leaf.ndim else n for i, n in enumerate(leaf.shape))
    fits = array.scale is None or (array.scale.shape == one and array.values.dtype == np.int8)
    if one is None or array.shape != leaf.shape or not fits:
        raise WeightsError(f"{name} of the file is no quantized array of this model: zoo.save(model, path) writes such")
    if isinstance(getattr(leaf, "sharding", None), jax.sharding.NamedSharding):
        raise WeightsError(f"the file's weights are {array.format}, which are not split over devices: load float ones")
    return jax.device_put(QuantizedArray(array.values, array.scale, leaf.dtype))


def put(model: nnx.Module, arrays: dict[str, Any]) -> dict[str, Any]:
    """Puts the quantized arrays of ``arrays`` into ``model``, on a CPU with float32 copies; returns the other
    arrays."""
    packed = {name: array for name, array in arrays.items() if isinstance(array, QuantizedArray)}
    places = _places(model) if packed else {}
    for name, array in packed.items():
        hold(*places[name], array)
    if packed:
        _with_copies(model, None)
    return {name: array for name, array in arrays.items() if name not in packed}


def _places(model: nnx.Module) -> dict[str, tuple[Any, str]]:
    """The module and the attribute of every variable that a module holds, by dotted name."""
    owners = {
        id(part): (module, name)
        for _, module in nnx.iter_modules(model)
        for name, part in vars(module).items()
        if nnx.Variable in type(part).__mro__
    }
    return {name: owners[id(part)] for name, part in variables(model).items() if id(part) in owners}
