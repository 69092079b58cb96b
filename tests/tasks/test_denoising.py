"""Denoising: which tokens are hidden, in which rows, and how many; losses; a model that is trained on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tasks
from layers.state import flatten
from training import assembly, evaluation, loop

LISTOPS = {"name": "listops", "length": 60, "shortest": 10, "max_depth": 4}
OF = {"name": "sequence_classification", "dataset": {**LISTOPS, "num_train": 64, "num_validation": 4, "num_test": 4}}


def made(of: dict[str, Any] | None = None, **options: Any) -> tuple[tasks.Denoising, Any]:
    task = tasks.create("denoising", of=of or OF, **options)
    return task, task._task


def test_masked_places_are_of_real_tokens_and_as_many_as_asked_for() -> None:
    task, own = made(rate=0.2, replace="mask")
    shares = []
    for index in range(30):
        clean = own.examples("train").get(index, None)
        noisy = task.examples("train").get(index, np.random.default_rng(index))
        places = noisy["places"] == 1
        assert not places[0], "the class token is seen"
        assert not (places & ~clean["mask"]).any()
        np.testing.assert_array_equal(noisy["targets"], clean["tokens"])
        np.testing.assert_array_equal(noisy["tokens"], np.where(places, own.mask_token, clean["tokens"]))
        assert places.sum() == max(round(0.2 * (clean["mask"].sum() - 1)), 1)
        shares.append(places.tolist())
    assert len({tuple(share) for share in shares}) == 30
    again = [task.examples("test").get(2, None) for _ in range(2)]
    np.testing.assert_array_equal(again[0]["tokens"], again[1]["tokens"])
    assert (task.examples("test").get(3, None)["places"] != again[0]["places"]).any()


def test_of_ten_hidden_tokens_one_stays_and_one_is_another() -> None:
    task, own = made(rate=0.5)
    masked = stayed = hidden = 0
    for index in range(200):
        noisy = task.examples("train").get(index % 64, np.random.default_rng(index))
        places = noisy["places"] == 1
        hidden += places.sum()
        masked += (noisy["tokens"][places] == own.mask_token).sum()
        stayed += (noisy["tokens"][places] == noisy["targets"][places]).sum()
        np.testing.assert_array_equal(noisy["tokens"][~places], noisy["targets"][~places])
    vocabulary = own.model_options()["vocab_size"]
    for found, expected in ((masked, 0.8 + 0.1 / vocabulary), (stayed, 0.1 + 0.1 / vocabulary)):
        assert abs(found / hidden - expected) < 4 * (expected * (1 - expected) / hidden) ** 0.5


def test_spans_lie_side_by_side() -> None:
    task, _ = made(rate=0.3, span=4, replace="mask")
    for index in range(10):
        places = task.examples("train").get(index, None)["places"]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], places, [0]])))
        last = int(np.flatnonzero(task.examples("train").get(index, None)["mask"])[-1])
        runs = edges.reshape(-1, 2)
        assert all(end - start >= 4 or end == last + 1 for start, end in runs)


def test_causal_targets_are_what_follows() -> None:
    task, own = made(kind="causal")
    assert task.model_options() == {"vocab_size": 17, "num_classes": 0, "output": "vocabulary", "causal": True}
    clean, row = own.examples("train").get(3, None), task.examples("train").get(3, None)
    length = int(clean["mask"].sum())
    np.testing.assert_array_equal(row["tokens"], clean["tokens"])
    np.testing.assert_array_equal(row["targets"][: length - 1], clean["tokens"][1:length])
    assert row["places"].tolist() == [1.0] * (length - 1) + [0.0] * (len(row["places"]) - length + 1)


def test_losses_count_hidden_places_alone(digits_dir: str) -> None:
    task, _ = made(replace="mask")
    rows = [task.examples("train").get(index, None) for index in range(3)]
    batch = {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]}
    logits = np.random.default_rng(0).standard_normal((3, 61, 17)).astype(np.float32)
    loss, metrics = task.loss(lambda tokens, mask: jnp.asarray(logits), batch, jax.random.key(0))
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = [-logp[i, j, row["targets"][j]] for i, row in enumerate(rows) for j in np.flatnonzero(row["places"])]
    np.testing.assert_allclose(loss, np.mean(chosen), rtol=1e-5)
    weighted = task.evaluate(lambda tokens, mask: jnp.asarray(logits), {**batch, "weight": jnp.array([1.0, 0, 0])})
    assert weighted["loss"][1] == rows[0]["places"].sum()

    images = {"name": "images", "images": {"name": "digits", "data_dir": digits_dir}}
    of = {"name": "sequence_classification", "dataset": images, "inputs": "linear"}
    numbers, own = made(of, rate=0.25, replace="mask")
    assert numbers.model_options() == {"inputs": "linear", "in_features": 1, "num_classes": 0, "output": "vocabulary"}
    row, clean = numbers.examples("train").get(0, None), own.examples("train").get(0, None)
    assert row["places"].sum() == 16
    assert not row["values"][row["places"] == 1].any()
    np.testing.assert_array_equal(row["targets"], clean["values"])
    found = np.full((1, 64, 1), 0.25, np.float32)
    batch = {name: jnp.asarray(value)[None] for name, value in row.items()}
    loss, metrics = numbers.loss(lambda values: jnp.asarray(found), batch, jax.random.key(0))
    np.testing.assert_allclose(loss, np.abs(0.25 - clean["values"])[row["places"] == 1].mean(), rtol=1e-5)
    assert set(metrics) == {"loss"}


def test_any_task_with_tokens_is_denoised_and_others_are_refused() -> None:
    task, own = made({"name": "parity", "length": 12, "test_length": 12}, replace="mask")
    assert task.model_options()["vocab_size"] == own.model_options()["vocab_size"] + 1, "the mask is a token of its own"
    row = task.examples("train").get(0, None)
    assert (row["tokens"][row["places"] == 1] == own.vocab_size).all()
    for options, message in (
        ({"of": {"dataset": "listops"}}, "of needs name="),
        ({"of": OF, "kind": "prefix"}, 'kind is "masked" or "causal"'),
        ({"of": OF, "rate": 1.0}, "rate is between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            tasks.create("denoising", **options)


def test_a_run_goes_on_from_one_of_denoising(tmp_path: Path) -> None:
    """The body is that of the first run, bit by bit; the classifier is fresh."""
    from configs import long_range_arena as config

    def of(argument: str, **changes: Any) -> Any:
        made = config.get_config(argument)
        made.update({"batch_size": 4, "train_for": "2 steps", "save_every": "2 steps", "eval_every": "", "workers": 0})
        made.schedule.warmup = "0 steps"
        made.model_options.update({"features": 8, "depth": 1, "num_heads": 2})
        made.update(changes)
        inner = made.task.of if "of" in made.task else made.task
        inner.dataset = OF["dataset"]
        return made

    first = of("listops,variant=nano,denoise=masked")
    task, model = assembly.build(first)
    loop.train(first, model, task, tmp_path / "first", record=assembly.record(first, task))
    learned = {name: np.asarray(leaf) for name, leaf in flatten(model).items()}
    with pytest.warns(UserWarning, match="the head for 10 classes stays random"):
        second, started = assembly.build(of("listops,variant=nano", weights=str(tmp_path / "first")))
    assert second.model_options()["num_classes"] == 10
    found = {name: np.asarray(leaf) for name, leaf in flatten(started).items()}
    body = [name for name in learned if not name.startswith("masked_lm")]
    for name in body:
        np.testing.assert_array_equal(found[name], learned[name], err_msg=name)
    assert any(name.startswith("blocks.0.mixer") for name in body)
    assert {name.split(".")[0] for name in found.keys() - learned.keys()} == {"head"}

    config2, folder = of("listops,variant=nano", weights=str(tmp_path / "first")), tmp_path / "second"
    loop.train(config2, started, second, folder, record=assembly.record(config2, second, started))
    _, again = assembly.build(config2, weights="", run=folder)
    assert evaluation.load(config2, again, folder) == 2
    for name, leaf in flatten(again).items():
        np.testing.assert_array_equal(leaf, flatten(started)[name], err_msg=name)
