"""Adapters in files of their own, and what adapted models refuse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import assign, flatten
from layers.lora import adapters
from zoo.files import write_arrays
from zoo.sources import open_source
from zoo.weights import WeightsError, export

SIZE = {"depth": 2, "features": 16, "patch_size": 8}


def vit(**options: Any) -> Any:
    return zoo.create("vit_nano_patch4_32", **{**SIZE, "num_classes": 4, **options})


def trained(**options: Any) -> Any:
    """A model whose adapters and head are not those it was made with."""
    model = zoo.add_lora(vit(**options), rank=3, alpha=5.0, patterns=("*.query", "*.value"))
    rng = np.random.default_rng(0)
    free = {**flatten(model, nnx.LoRAParam), "head.kernel": model.head.kernel}
    assign(model, {name: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32) for name, leaf in free.items()})
    return model


def test_adapters_alone(tmp_path: Path) -> None:
    model, path = trained(), tmp_path / "adapters.safetensors"
    zoo.save_adapters(model, path)
    assert path.stat().st_size < 10_000
    for classes in (4, 9):  # a head for other classes is replaced
        again = zoo.load_adapters(vit(num_classes=classes), path)
        assert nnx.graphdef(again) == nnx.graphdef(model)
        ours, theirs = flatten(again), flatten(model)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
        assert {layer.lora_scale for layer in adapters(again).values()} == {5 / 3}


class FromAccelerator:
    """An array as an accelerator may hand it over: its axes lie in memory in another order."""

    def __init__(self, array: np.ndarray):
        self.array = np.asfortranarray(array)
        self.shape, self.dtype = array.shape, array.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_are_in_c_order(suffix: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "matrix": rng.standard_normal((3, 5)),
        "kernel": rng.standard_normal((2, 3, 4, 5)),
        "scalar": np.float32(2.0),
    }
    given = {name: FromAccelerator(np.asarray(array, np.float32)) for name, array in arrays.items()}
    path = tmp_path / f"arrays{suffix}"
    write_arrays(path, given, {"format": "pt"})
    found = open_source(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].read(), np.asarray(array, np.float32))


def test_one_place_writes_files() -> None:
    """Others would have to remember the order of axes and to replace files as a whole."""
    folder = Path(zoo.__file__).parent
    writers = {
        path.name
        for path in folder.rglob("*.py")
        if re.search(r"save_file|serialize_file|np\.savez?\(", path.read_text())
    }
    assert writers == {"files.py"}


def test_whole_models_are_merged_first(tmp_path: Path) -> None:
    model = trained()
    with pytest.raises(
        WeightsError,
        match=r"has adapters, for which no released file has names: zoo.merge_lora\(model\) puts them into its weights",
    ):
        zoo.save(model, tmp_path / "model.safetensors")
    zoo.save(model, tmp_path / "ours.safetensors", naming="zoo")
    again = zoo.load(
        zoo.add_lora(vit(), rank=3, alpha=5.0, patterns=("*.query", "*.value")), tmp_path / "ours.safetensors"
    )
    assert all(np.array_equal(a, b) for a, b in zip(flatten(again).values(), flatten(model).values(), strict=True))
    names = set(export(vit()))
    zoo.merge_lora(model)
    zoo.save(model, tmp_path / "model.safetensors")
    plain = zoo.create("vit_nano_patch4_32", weights=tmp_path / "model.safetensors", **SIZE, num_classes=4)
    assert set(export(plain)) == names
    assert np.array_equal(plain.blocks[0].mixer.query.kernel[...], model.blocks[0].mixer.query.kernel[...])


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "adapters.safetensors"
    with pytest.raises(WeightsError, match="no adapters to save"):
        zoo.save_adapters(vit(), path)
    with pytest.raises(WeightsError, match=r"saved as .safetensors, got adapters.bin"):
        zoo.save_adapters(trained(), tmp_path / "adapters.bin")
    with pytest.raises(WeightsError, match="there are no adapters at"):
        zoo.load_adapters(vit(), path)
    zoo.save_adapters(trained(), path)
    with pytest.raises(WeightsError, match=r"merge_lora\(model\) first"):
        zoo.load_adapters(trained(), path)
    for other in (vit(depth=1), vit(features=32), vit(mixer="mamba")):
        before = nnx.graphdef(other)
        with pytest.raises(
            WeightsError, match="holds adapters of vit_nano_patch4_32: vit_nano_patch4_32 has no such layers: blocks"
        ):
            zoo.load_adapters(other, path)
        assert nnx.graphdef(other) == before
    zoo.save(vit(), tmp_path / "whole.safetensors")
    with pytest.raises(WeightsError, match=r"holds no adapters of this zoo: zoo.load\(model, path\)"):
        zoo.load_adapters(vit(), tmp_path / "whole.safetensors")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(WeightsError, match="is damaged"):
        zoo.load_adapters(vit(), path)
