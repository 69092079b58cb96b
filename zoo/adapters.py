"""Saving and loading LoRA adapters without the base model, in a ``.safetensors`` file under our own parameter names.

A file holds the adapters, the heads that were trained with them, and the scale alpha / rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.lora import adapt, adapters, kept, linear_layers
from layers.state import assign, flatten
from zoo.files import write_arrays
from zoo.sources import WeightsError


def save_adapters(model: nnx.Module, path: str | Path) -> None:
    """Writes the adapters and heads of ``model`` to ``path``.

    Raises:
      WeightsError: the model has no adapters, or the file's suffix is not .safetensors.
    """
    adapted = adapters(model)
    if not adapted:
        raise WeightsError(
            "the model has no adapters to save: zoo.add_lora(model) gives it some, zoo.save(model, path) saves whole "
            "models"
        )
    if Path(path).suffix != ".safetensors":
        raise WeightsError(f"adapters are saved as .safetensors, got {Path(path).name}")
    still = kept(model)
    arrays = {name: np.asarray(leaf) for name, leaf in flatten(model, nnx.Param).items() if name not in still}
    scale = next(iter(adapted.values())).lora_scale
    write_arrays(
        Path(path),
        arrays,
        {"format": "mixer-zoo adapters", "model": str(getattr(model, "variant", "")), "scale": repr(scale)},
    )


def load_adapters(model: nnx.Module, path: str | Path) -> nnx.Module:
    """Loads the adapters and heads of a file into ``model``, which must hold the base weights that they were trained
    on, and returns it.

    If the file's head has another number of classes, the model's head is replaced.

    Raises:
      WeightsError: the file is missing, damaged or made for another model, or the model already has adapters. The model
        is unchanged.
    """
    arrays, about = _read(Path(path))
    if adapters(model):
        raise WeightsError("the model has adapters already: zoo.merge_lora(model) first")
    made: Any = model
    heads = getattr(model, "heads", ("head",))
    linear = linear_layers(model)
    names = sorted({name.rpartition(".")[0] for name in arrays if name.endswith(".lora_a")})
    wrong = [name for name in names if name not in linear or not _fits(linear[name], arrays, name)]
    whole = {name: array for name, array in arrays.items() if ".lora_" not in name}
    wrong += [name for name in whole if name.split(".")[0] not in heads]
    if wrong or not names:
        made_for = f"{path} holds adapters of {about.get('model') or 'another model'}"
        raise WeightsError(
            f"{made_for}: {getattr(made, 'variant', type(model).__name__)} has no such layers: "
            f"{', '.join(wrong[:8]) or 'none are named'}"
        )
    for name in names:
        rank = arrays[f"{name}.lora_a"].shape[1]
        adapt(linear[name], rank, float(about["scale"]) * rank, nnx.Rngs(0))
    leaves = flatten(model)
    if any(name not in leaves or leaves[name].shape != array.shape for name, array in whole.items()):
        made.reset_head(next(array.shape[-1] for array in whole.values()))
        leaves = flatten(model)
    assign(model, {name: jnp.asarray(array, leaves[name].dtype) for name, array in arrays.items()})
    return model


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import safe_open

    if not path.exists():
        raise WeightsError(f"there are no adapters at {path}")
    try:
        with safe_open(path, framework="np") as file:
            about = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise WeightsError(f"{path} is damaged or not a .safetensors file ({error}): get it again") from error
    if "scale" not in about:
        raise WeightsError(f"{path} holds no adapters of this zoo: zoo.load(model, path) reads whole models")
    return arrays, about


def _fits(layer: nnx.Linear, arrays: dict[str, np.ndarray], name: str) -> bool:
    a, b = arrays[f"{name}.lora_a"], arrays.get(f"{name}.lora_b")
    return b is not None and a.shape[0] == layer.in_features and b.shape == (a.shape[1], layer.out_features)
