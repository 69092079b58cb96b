"""Loading and saving weights: formats, prefixes, heads, sizes, dtypes, and every kind of bad input. No reference
implementation needed.
"""

from __future__ import annotations

import argparse
import json
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import zoo
from layers.state import flatten
from tests.tiers import tiered
from training.workdir import environment
from zoo.weights import WeightsError, export

SMALL: dict[str, Any] = {
    "features": 16,
    "depth": 2,
    "num_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "num_classes": 4,
}
NAME = "vit_small_patch16_224"


def small(seed: int = 0, **options: Any) -> nnx.Module:
    return zoo.create(NAME, rngs=nnx.Rngs(seed), **{**SMALL, **options})


@pytest.fixture(scope="module")
def source() -> nnx.Module:
    return small(1)


def equal(a: nnx.Module, b: nnx.Module) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(flatten(a).values(), flatten(b).values(), strict=True))


def refused(model: nnx.Module, source: Any, match: str, **options: Any) -> str:
    """Loading fails with one message that matches, and leaves the model as it was."""
    before = {name: np.asarray(array) for name, array in flatten(model).items()}
    with pytest.raises(WeightsError, match=match) as caught:
        zoo.load(model, source, **options)
    after = flatten(model)
    assert set(before) == set(after)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    return str(caught.value)


# --- formats ----------------------------------------------------------------------------------------------------------


def _safetensors(arrays: dict[str, np.ndarray], folder: Path) -> Path:
    save_file(arrays, folder / "a.safetensors")
    return folder / "a.safetensors"


def _sharded(arrays: dict[str, np.ndarray], folder: Path) -> Path:
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(arrays)}
    for file in set(files.values()):
        save_file({name: array for name, array in arrays.items() if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def _torch(wrap: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, np.ndarray], Path], Path]:
    def write(arrays: dict[str, np.ndarray], folder: Path) -> Path:
        torch = pytest.importorskip("torch")
        torch.save(wrap({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}), folder / "a.pth")
        return folder / "a.pth"

    return write


FORMATS = {
    "safetensors": _safetensors,
    "sharded": _sharded,
    "torch": _torch(lambda state: state),
    "wrapped": _torch(lambda state: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}),
    "averaged": _torch(lambda state: {"model": {k: v * 0 for k, v in state.items()}, "model_ema": state}),
}


@pytest.mark.parametrize("form", FORMATS)
def test_formats(form: str, source: nnx.Module, tmp_path: Path) -> None:
    arrays = export(source)
    path = FORMATS[form](arrays, tmp_path)
    assert equal(zoo.load(small(), path), source)


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
def test_npz(prefix: str, source: nnx.Module, tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz",
        **{prefix + name: array for name, array in export(source, naming="vision_transformer").items()},
    )
    assert equal(zoo.load(small(), tmp_path / "a.npz"), source)


def test_one_tower_of_two(tmp_path: Path) -> None:
    source = small(1, prefix_positions="none")
    arrays = {f"params/img/{name}": array for name, array in export(source, naming="big_vision").items()}
    np.savez(tmp_path / "a.npz", **arrays, **{"params/txt/Embed_0/embedding": np.zeros((3, 4), np.float32)})
    assert equal(zoo.load(small(), tmp_path / "a.npz"), source)


def test_training_checkpoint(source: nnx.Module, tmp_path: Path) -> None:
    """The folder of a run, whose running average is taken where there is one."""
    import orbax.checkpoint as ocp

    leaves = flatten(source)
    weights = {f"params.{name}": leaf * 0 for name, leaf in leaves.items()} | {
        f"ema.{name}": leaf for name, leaf in leaves.items()
    }
    for step in (5, 10):
        with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
            manager.save(
                step,
                args=ocp.args.Composite(
                    weights=ocp.args.StandardSave(weights), optimizer=ocp.args.StandardSave({"step": jnp.zeros((2,))})
                ),
            )
    assert equal(zoo.load(small(), tmp_path), source)
    assert equal(zoo.load(small(), tmp_path / "checkpoints" / "5"), source)


@pytest.mark.parametrize("naming", ["timm", "transformers", "vision_transformer", "zoo"])
@pytest.mark.parametrize("options", [{}, {"scan": True, "remat": True}], ids=["plain", "scanned"])
def test_round_trip(naming: str, options: dict[str, Any], source: nnx.Module, tmp_path: Path) -> None:
    zoo.save(source, tmp_path / "a.safetensors", naming=naming)
    loaded = zoo.load(small(**options), tmp_path / "a.safetensors")
    assert equal(loaded, source)
    zoo.save(loaded, tmp_path / "b.safetensors", naming=naming)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_only_what_is_asked_for_is_read(source: nnx.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sharded checkpoint is never whole in memory: arrays are read one by one, and put where the model's are."""
    from zoo import weights

    held: list[int] = []
    original = jax.device_put

    def put(array: Any, *args: Any) -> Any:
        held.append(array.nbytes)
        return original(array, *args)

    model = small()
    monkeypatch.setattr(weights.jax, "device_put", put)
    zoo.load(model, _sharded(export(source), tmp_path))
    assert len(held) == len(flatten(source))
    assert max(held) == max(leaf.nbytes for leaf in flatten(source).values())


def test_dtype(source: nnx.Module) -> None:
    arrays = {name: array.astype(jnp.bfloat16) for name, array in export(source).items()}
    kinds = {None: jnp.float32, "file": jnp.bfloat16, "float16": jnp.float16}
    for dtype, kind in kinds.items():
        assert {leaf.dtype for leaf in flatten(zoo.load(small(), arrays, dtype=dtype)).values()} == {jnp.dtype(kind)}


# --- heads, sizes, preprocessing --------------------------------------------------------------------------------------


def test_another_number_of_classes(source: nnx.Module) -> None:
    arrays = export(source)
    refused(
        small(num_classes=7),
        arrays,
        r'has 4 classes and vit_small_patch16_224 7: make the model with num_classes=4, or load with head="reset"',
    )
    model = small(num_classes=7)
    head = np.asarray(model.head.kernel[...])
    zoo.load(model, arrays, head="reset")
    assert np.array_equal(model.head.kernel[...], head)
    assert np.array_equal(model.norm.bias[...], source.norm.bias[...])
    assert zoo.load(small(num_classes=0), arrays).head is None


def test_create_keeps_the_head_random_for_other_classes(source: nnx.Module) -> None:
    arrays = export(source)
    with pytest.warns(UserWarning, match="has 4 classes: the head for 7 classes stays random"):
        model = zoo.create(NAME, weights=arrays, **{**SMALL, "num_classes": 7})
    assert model.head.kernel.shape == (16, 7)
    assert equal(zoo.create(NAME, weights=arrays, **SMALL), source)


def test_a_file_without_head(source: nnx.Module) -> None:
    arrays = {name: array for name, array in export(source).items() if not name.startswith("head")}
    refused(
        small(), arrays, r'2 missing: head\.bias, head\.weight; the file has no classifier: load it with head="reset"'
    )
    zoo.load(small(), arrays, head="reset")


@pytest.mark.parametrize("naming", ["vision_transformer", "transformers", "zoo"])
def test_the_layer_before_a_released_head(naming: str) -> None:
    """A file that holds it gives it to a model whose head it also gives, or that has none."""
    whole = small(2, pooler=True)
    arrays = export(whole, naming=naming)
    assert ("pre_logits/kernel" in arrays) == (naming == "vision_transformer")
    assert equal(zoo.load(small(), arrays), whole)
    assert equal(zoo.load(small(num_classes=0), arrays), small(2, pooler=True, num_classes=0))
    assert zoo.load(small(), arrays, head="reset").pooler is None


def test_position_table_is_resampled(source: nnx.Module) -> None:
    with pytest.warns(UserWarning, match="position.table was made for a grid of 2x2 and is resampled to 4x4"):
        model = zoo.load(small(image_size=32), export(source))
    assert model.position.table.shape == (4, 4, 16)
    assert np.array_equal(model.prefix_position[...], source.prefix_position[...])


@pytest.mark.parametrize("channels", [1, 4])
def test_kernels_on_colors_are_adapted_to_other_images(channels: int, source: nnx.Module) -> None:
    with pytest.warns(UserWarning, match=f"kernel was made for images of 3 channels and is adapted to {channels}$"):
        model: Any = zoo.load(small(in_channels=channels), export(source))
    kernel, theirs = model.patch_embed.kernel[...], cast(Any, source).patch_embed.kernel[...]
    assert kernel.shape == (8, 8, channels, 16)
    if channels == 4:
        np.testing.assert_allclose(kernel * 4 / 3, theirs[:, :, (0, 1, 2, 0)], rtol=1e-6)
    else:
        np.testing.assert_allclose(kernel[:, :, 0], theirs.sum(axis=2), rtol=1e-5, atol=1e-6)
        assert zoo.preprocess(model).mean == (0.5,)
        gray = jax.random.normal(jax.random.key(0), (1, 16, 16, 1))
        colors = jnp.repeat(gray, 3, axis=-1)
        np.testing.assert_allclose(model(gray), cast(Any, source)(colors), rtol=1e-5, atol=1e-6)
    refused(small(), export(model), "of another shape")


def test_released_checkpoints_carry_their_preprocessing(
    source: nnx.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo import weights

    asked = []
    path = _safetensors(export(source), tmp_path)
    original = weights.open_source
    monkeypatch.setattr(weights, "open_source", lambda where: asked.append(where) or original(path))
    assert zoo.preprocess("vit_small_patch16_224").mean == (0.5, 0.5, 0.5)
    model = zoo.load(small(), "dino", head="reset")
    assert asked == ["hf://timm/vit_small_patch16_224.dino"]
    assert zoo.preprocess(model).mean == (0.485, 0.456, 0.406)
    zoo.load(small(), "in1k")
    assert asked[-1] == "hf://timm/vit_small_patch16_224.augreg_in21k_ft_in1k"


# --- bad input --------------------------------------------------------------------------------------------------------


def test_all_faults_are_listed_together(source: nnx.Module) -> None:
    arrays = export(source)
    arrays["other.weight"] = arrays.pop("norm.weight")
    arrays["blocks.1.mlp.fc2.weight"] = arrays["blocks.1.mlp.fc2.weight"][:, :3]
    message = refused(small(), arrays, "does not fit")
    for part in (
        "1 missing: norm.weight",
        "1 unexpected: other.weight",
        "blocks.1.mlp.fc2.weight is (16, 3), the model has (16, 64)",
    ):
        assert part in message


def test_integers_are_no_weights(source: nnx.Module) -> None:
    arrays = export(source)
    arrays["blocks.1.mlp.fc2.weight"] = np.ones((16, 64), np.int8)
    refused(small(), arrays, r"blocks.1.mlp.fc2.weight of the dictionary holds integers \(int8\)")


def test_wrong_architecture_names_the_nearest() -> None:
    arrays = export(zoo.create("vit_tiny_patch16_224", num_classes=3))
    assert "by its shapes it is deit_tiny_patch16_224 or vit_tiny_patch16_224 or vit_tiny_patch16_384" in refused(
        zoo.create("biformer_nano"), arrays, "does not fit biformer_nano"
    )
    message = refused(
        small(),
        {"a.weight": np.zeros((3, 3))},
        r"does not fit vit_small_patch16_224: none of its namings .* the nearest is 'timm'",
    )
    assert "it fits no model of this zoo as published" in message
    assert len(message) < 400  # of another architecture's names a few are enough


MODELS: dict[str, dict[str, Any]] = {
    "vit_nano_patch4_32": {"depth": 1},
    "maxvit_nano": {"features": (8, 16), "depths": (1, 1), "stem": 8, "num_heads": (1, 2)},
    "bert_tiny": {"features": 16, "depth": 1, "vocab_size": 30},
}


@pytest.mark.parametrize("name", tiered(MODELS, lambda name: name != "maxvit_nano"))
def test_any_model_refuses_a_bad_file(name: str, tmp_path: Path, source: nnx.Module) -> None:
    """Damaged, of another architecture, or of other classes: one message, for which the model is as before."""
    options = MODELS[name]
    path = tmp_path / "a.safetensors"
    zoo.save(zoo.create(name, **options, num_classes=7), path)
    model = zoo.create(name, **options, num_classes=4)
    refused(model, path, f"a.safetensors has 7 classes and {name} 4: make the model with num_classes=7")
    with pytest.warns(UserWarning, match="a.safetensors has 7 classes: the head for 4 classes stays random"):
        zoo.create(name, weights=path, **options, num_classes=4)
    path.write_bytes(path.read_bytes()[:-9])
    refused(model, path, "a.safetensors is damaged or cut short")
    with pytest.raises(WeightsError, match=r"a\.safetensors is damaged or cut short"):
        zoo.create(name, weights=path, **options, num_classes=4)
    zoo.save(source, path)
    refused(model, path, f"a.safetensors does not fit {name}")


def test_a_classifier_of_text_starts_from_a_model_without_pooler() -> None:
    """As the files of masked language models are: the pooler belongs to the head, and stays random with it."""
    options = MODELS["bert_tiny"]
    arrays = export(zoo.create("bert_tiny", **options))
    with pytest.warns(UserWarning, match="has no pooler: the model's stays random"):
        model = zoo.load(zoo.create("bert_tiny", **options, num_classes=3), arrays, head="reset")
    assert np.array_equal(model.embedding.embedding[...], arrays["bert.embeddings.word_embeddings.weight"])
    refused(zoo.create("bert_tiny", **options, num_classes=3), arrays, "4 missing: .*classifier")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.95])
def test_truncated_file(suffix: str, share: float, source: nnx.Module, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        FORMATS["torch"](export(source), tmp_path)
    else:
        zoo.save(source, path, naming="vision_transformer" if suffix == ".npz" else None)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(small(), path, r"is damaged or cut short")


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.target),)  # type: ignore[attr-defined]


def test_pickle_with_code_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    evil = _Evil()
    evil.target = str(tmp_path / "ran")  # type: ignore[attr-defined]
    import torch

    torch.save({"state_dict": {"a": torch.zeros(2)}, "args": evil}, tmp_path / "new.pth")
    torch.save(
        {"state_dict": {"a": torch.zeros(2)}, "args": evil}, tmp_path / "old.pth", _use_new_zipfile_serialization=False
    )
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"a": evil}))
    for file in ("new.pth", "old.pth", "plain.bin"):
        refused(small(), tmp_path / file, "would run code when loaded .*: refused")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_scripts_keep_beside_tensors(zipped: bool, source: nnx.Module, tmp_path: Path) -> None:
    """A namespace of options, NumPy's numbers and arrays: data, which load without running code, in either form of
    PyTorch's files.
    """
    torch = pytest.importorskip("torch")
    options = argparse.Namespace(lr=0.1, name="run", best=np.float32(0.5), layers=[1, 2])
    kept = {
        "epoch": np.int64(3),
        "best": np.float64(0.75),
        "done": np.bool_(True),
        "curve": np.arange(4.0),
        "args": options,
    }
    weights = {name: torch.from_numpy(array.copy()) for name, array in export(source).items()}
    torch.save({"model": weights, **kept}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert equal(zoo.load(small(), tmp_path / "a.pth"), source)
    torch.save(
        {"model": weights, "rng": np.random.default_rng(0)}, tmp_path / "b.pth", _use_new_zipfile_serialization=zipped
    )
    refused(small(), tmp_path / "b.pth", "holds more than weights and would run code when loaded .*: refused")


def test_a_page_in_place_of_a_file(tmp_path: Path) -> None:
    """As a server sends it."""
    pytest.importorskip("torch")
    for file in ("a.pth", "b.bin"):
        (tmp_path / file).write_bytes(b"<html>not found</html>")
        refused(small(), tmp_path / file, "is damaged or cut short .neither a zip archive nor a pickle")


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": 3}'])
def test_what_is_no_index_of_several_files(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    refused(small(), tmp_path, "is not the index of a sharded checkpoint")


@pytest.mark.parametrize("file", ["../a.safetensors", "/a.safetensors", "..", 3])
def test_an_index_reads_what_is_beside_it_alone(file: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    refused(small(), tmp_path, "which is no file beside it: only such are read")


def test_unknown_sources(tmp_path: Path) -> None:
    refused(small(), tmp_path / "absent.safetensors", "there are no weights at")
    refused(small(), "in2k", r"unknown weights 'in2k'.* the released checkpoints of vit_small_patch16_224 are: augreg")
    refused(small(), tmp_path, "holds neither model.safetensors")
    (tmp_path / "a.h5").write_bytes(b"")
    refused(small(), tmp_path / "a.h5", "is of no format that weights are read from")
    refused(
        small(),
        "https://example.org/a.safetensors",
        "weights are not fetched from https://example.org/a.safetensors: download the file",
    )
    refused(small(), 3, "weights are a path, the name of a released checkpoint, or a dictionary of arrays; got int")
    refused(small(), {}, 'dtype is None, "file", or the name of a dtype', dtype="float33")
    refused(small(), {}, "does not fit", naming="timm")
    refused(small(), {}, "vit has no naming 'tim': did you mean 'timm'", naming="tim")


def test_without_a_network(source: nnx.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, a cached checkpoint loads; one that is not cached is refused with the cache named."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    message = refused(small(), "hf://someone/model", "can't be reached and a file of weights is not in the cache")
    assert str(tmp_path) in message
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--someone--model"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    _sharded(export(source), folder / "snapshots" / commit)
    assert equal(zoo.load(small(), "hf://someone/model"), source)
    assert equal(zoo.load(small(), f"hf://someone/model@{commit}/model.safetensors.index.json"), source)
    refused(small(), "hf://someone/model/other.safetensors", "other.safetensors is not in the cache")


def test_a_network_that_fails_is_asked_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Every attempt takes the library half a minute of retries, of which it logs each: the other names are looked for
    in the cache alone.
    """
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(repository: str, name: str, *, revision: str | None, local_files_only: bool) -> str:
        asked.append(local_files_only)
        hub.logging.get_logger("huggingface_hub.utils").warning("Retrying in 8s")
        raise hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    refused(small(), "hf://someone/model", "can't be reached and a file of weights is not in the cache")
    assert asked == [False, True, True, True]
    assert not caplog.records


def test_the_hubs_token_is_not_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Neither in a message, nor in its cause, nor in a log, nor in what is saved or written down of a run."""
    hub = pytest.importorskip("huggingface_hub")
    errors = pytest.importorskip("huggingface_hub.errors")
    token = "hf_abcdefghijklmnop"
    monkeypatch.setenv("HF_TOKEN", token)
    for error in (OSError(f"no route for Bearer {token}"), errors.HFValidationError(f"bad request with {token}")):
        monkeypatch.setattr(hub, "hf_hub_download", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        with pytest.raises(WeightsError, match=r"hf://someone/model") as caught:
            zoo.load(small(), "hf://someone/model")
        assert token not in "".join(traceback.format_exception(caught.value))
    zoo.save(small(), tmp_path / "a.safetensors")
    assert token.encode() not in (tmp_path / "a.safetensors").read_bytes()
    assert token not in json.dumps(environment({"seed": 0}))
    assert token not in caplog.text


def test_a_failed_save_leaves_the_old_file(source: nnx.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    zoo.save(source, path)
    before = load_file(path)
    monkeypatch.setattr("safetensors.numpy.save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        zoo.save(small(3), path)
    assert set(load_file(path)) == set(before)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    with pytest.raises(WeightsError, match=r"saved as \.safetensors or \.npz"):
        zoo.save(source, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="has no naming 'authors'"):
        zoo.save(source, path, naming="authors")


def test_a_mixer_of_ones_own_is_saved_under_our_names(tmp_path: Path) -> None:
    model = small(mixer={"name": "bilevel_routing", "regions": 2, "topk": 1})
    with pytest.raises(WeightsError, match='naming="zoo" saves any model'):
        zoo.save(model, tmp_path / "a.safetensors")
    zoo.save(model, tmp_path / "a.safetensors", naming="zoo")
    assert equal(
        zoo.load(small(5, mixer={"name": "bilevel_routing", "regions": 2, "topk": 1}), tmp_path / "a.safetensors"),
        model,
    )
