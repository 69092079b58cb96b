"""Models as folders and on the hub: read back without a name or an option, whatever was changed; refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

import zoo
from layers import flatten
from tests.zoo.hub import Hub
from zoo.registry import FrozenOptions
from zoo.sources import WeightsError

VIT = {"depth": 2, "features": 16, "num_heads": 2, "image_size": 8, "patch_size": 4, "num_classes": 3}


def changed() -> Any:
    """A model that differs from its variant in sizes, mixer, classes and the preparation of images."""
    model: Any = zoo.create("vit_nano_patch4_32", **VIT, mixer={"name": "agent", "agents": 4}, rngs=nnx.Rngs(3))
    model.class_names = ("ash", "oak", "elm")
    model.released = FrozenOptions({"mean": (0.1, 0.2, 0.3), "interpolation": "bilinear"})
    return model


def assert_same(found: Any, wanted: Any) -> None:
    assert found.variant == wanted.variant
    assert found.config == wanted.config
    assert found.class_names == wanted.class_names
    assert zoo.preprocess(found) == zoo.preprocess(wanted)
    ours, theirs = flatten(found), flatten(wanted)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def test_a_folder_is_the_model(tmp_path: Path) -> None:
    model = changed()
    folder = zoo.save_folder(model, tmp_path / "model", license="mit")
    assert_same(zoo.create(weights=folder), model)
    card = (folder / "README.md").read_text()
    assert "license: mit" in card
    assert "3 classes: ash, oak, elm" in card
    assert "An Image is Worth 16x16 Words" in card


def test_a_tokenizer_comes_with_its_model(tmp_path: Path) -> None:
    made: Any = zoo.create("transformer_nano", depth=1, features=16, num_heads=2, vocab_size=300)
    own = tmp_path / "own.json"
    own.write_text('{"kept": "as it is"}')
    made.tokenizer = FrozenOptions({"path": str(own), "separator": "<s>"})
    folder = zoo.save_folder(made, tmp_path / "model")
    found: Any = zoo.create(weights=folder)
    assert dict(found.tokenizer) == {"path": str(folder / "tokenizer.json"), "separator": "<s>"}
    assert (folder / "tokenizer.json").read_text() == own.read_text()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    constants = pytest.importorskip("huggingface_hub.constants")
    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


def test_the_hub_gives_back_the_model(hub: Hub) -> None:
    """By huggingface_hub's own client: a repository is made, files are committed, and read at that commit."""
    model = changed()
    where = zoo.push_to_hub(model, "someone/trees", license="mit", token="hf_secret")
    assert where == f"hf://someone/trees@{hub.commit('someone/trees')}"
    assert hub.tokens == {"Bearer hf_secret"}
    assert hub.files["someone/trees"].keys() == {"model.safetensors", "model.json", "README.md"}
    assert_same(zoo.create(weights=where), model)
    assert_same(zoo.create(weights="hf://someone/trees"), model)


def test_what_the_hub_refuses_is_said(hub: Hub) -> None:
    with pytest.raises(WeightsError, match=r"hf://no owner/x/y can't be written .*the name is owner/name"):
        zoo.push_to_hub(changed(), "no owner/x/y", token="hf_secret")
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(WeightsError, match=r"hf://someone/trees can't be written") as caught:
        zoo.push_to_hub(changed(), "someone/trees", token="hf_secret")
    assert "hf_secret" not in str(caught.value)


def test_what_options_do_not_say_is_refused(tmp_path: Path) -> None:
    adapted = zoo.add_lora(zoo.create("vit_nano_patch4_32", **VIT), rank=2)
    with pytest.raises(WeightsError, match=r"can't be described by its options: merge adapters by zoo\.merge_lora"):
        zoo.save_folder(adapted, tmp_path / "adapted")
    assert not (tmp_path / "adapted").exists()
