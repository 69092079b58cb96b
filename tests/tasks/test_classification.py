"""The task: its contract, its purity, its loss and its metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tasks


@pytest.fixture(scope="module")
def make(digits_dir):
    from dataclasses import make_dataclass

    fields = {
        "image_size": 16,
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2, 0.25, 0.3),
        "interpolation": "bicubic",
        "crop_fraction": 0.9,
        "crop_mode": "center",
    }
    preprocess = make_dataclass("Preprocess", fields)(**fields)
    return lambda **options: tasks.create(
        "classification",
        **{"preprocess": preprocess, "dataset": {"name": "digits", "data_dir": digits_dir}, "augment": {"fit": "whole"}}
        | options,
    )


def test_the_contract(make):
    task = make()
    assert isinstance(task, tasks.Task)
    assert isinstance(task.examples("train"), tasks.Examples)
    assert tasks.list_tasks() == sorted(tasks.list_tasks())
    assert "classification" in tasks.list_tasks()
    assert tasks.lookup("classification").needs == ("preprocess", "class_names", "make_teacher")
    assert task.model_options() == {"num_classes": 10, "in_channels": 3}
    assert make(image_size=24).model_options()["image_size"] == 24
    assert {split: len(task.examples(split)) for split in task.splits} == {
        "train": 1293,
        "validation": 144,
        "test": 360,
    }
    assert task.class_names == tuple("0123456789")


def test_an_example_depends_on_index_and_generator_alone(make):
    one, other = (
        make(augment={"fit": "whole", "rotation": 10.0, "translation": 0.1}).examples("train") for _ in range(2)
    )
    order = [5, 0, 1292, 5]
    first = [one.get(i, np.random.Generator(np.random.Philox(key=[i, 1]))) for i in order]
    second = [other.get(i, np.random.Generator(np.random.Philox(key=[i, 1]))) for i in reversed(order)][::-1]
    for a, b in zip(first, second):
        assert np.array_equal(a["image"], b["image"])
        assert a["label"] == b["label"]
    assert np.array_equal(first[0]["image"], first[3]["image"])
    assert not np.array_equal(first[0]["image"], one.get(5, np.random.Generator(np.random.Philox(key=[5, 2])))["image"])
    assert not np.array_equal(first[0]["image"], one.get(5, None)["image"])
    assert np.array_equal(one.get(5, None)["image"], one.get(5, None)["image"])
    assert {(e["image"].shape, e["image"].dtype.name, e["label"].shape, e["label"].dtype.name) for e in first} == {
        ((16, 16, 3), "uint8", (), "int32")
    }


def stacked(examples, count):
    found = [examples.get(i, None) for i in range(count)]
    return {name: jnp.asarray(np.stack([e[name] for e in found])) for name in found[0]}


def test_images_are_normalized_as_the_model_wants(make):
    task = make()
    batch = stacked(task.examples("test"), 4)
    expected = (np.asarray(batch["image"]) / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.25, 0.3]
    images = task.normalized(batch["image"])
    assert images.dtype == jnp.float32
    np.testing.assert_allclose(images, expected, atol=1e-5)


def model(images):
    """Logits from the images, well spread."""
    flat = images.reshape(len(images), -1)
    return flat @ jax.random.normal(jax.random.key(3), (flat.shape[1], 10)) / 20


def test_the_loss_is_smoothed_cross_entropy(make):
    task = make(label_smoothing=0.1)
    batch = stacked(task.examples("test"), 8)
    loss, metrics = jax.jit(lambda b, k: task.loss(model, b, k))(batch, jax.random.key(0))
    logp = np.asarray(jax.nn.log_softmax(model(task.normalized(batch["image"]))))
    label = np.asarray(batch["label"])
    expected = -(0.9 * logp[np.arange(8), label] + 0.1 * logp.mean(1))
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], (expected.sum(), 8), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], ((logp.argmax(1) == label).sum(), 8))
    assert all(np.shape(part) == () for pair in metrics.values() for part in pair)


def test_mixing_and_erasing_take_the_key(make):
    task = make(mix={"mixup": 1.0, "cutmix": 1.0, "erasing": 0.5})
    batch = stacked(task.examples("test"), 8)
    loss = jax.jit(lambda k: task.loss(model, batch, k)[0])
    assert loss(jax.random.key(0)) == loss(jax.random.key(0))
    assert loss(jax.random.key(0)) != loss(jax.random.key(1))


def test_evaluation_counts_every_real_row_once(make):
    task = make()
    batch = stacked(task.examples("test"), 30)
    whole = task.evaluate(model, batch | {"weight": jnp.ones(30)})
    assert set(whole) == {"loss", "accuracy", "top5"}
    assert all(count == 30 for _, count in whole.values())
    assert 0 < whole["accuracy"][0] < whole["top5"][0] < 30
    parts = []
    for start in range(0, 30, 8):
        rows = np.minimum(np.arange(start, start + 8), 29)
        weight = jnp.asarray(np.arange(start, start + 8) < 30, jnp.float32)
        parts.append(task.evaluate(model, {name: of[rows] for name, of in batch.items()} | {"weight": weight}))
    for name, (total, count) in whole.items():
        np.testing.assert_allclose([sum(p[name][i] for p in parts) for i in (0, 1)], [total, count], rtol=1e-5)


def test_top5_is_among_the_five_greatest(make):
    task = make()
    batch = stacked(task.examples("test"), 50)
    logits = np.asarray(model(task.normalized(batch["image"])))
    expected = sum(label in np.argsort(-row)[:5] for row, label in zip(logits, np.asarray(batch["label"])))
    assert task.evaluate(model, batch | {"weight": jnp.ones(50)})["top5"][0] == expected


def test_constant_and_nan_logits_are_not_right(make):
    task = make()
    batch = stacked(task.examples("test"), 50) | {"weight": jnp.ones(50)}
    constant = task.evaluate(lambda images: jnp.zeros((len(images), 10)), batch)
    assert constant["accuracy"][0] == (np.asarray(batch["label"]) == 0).sum()
    assert task.evaluate(lambda images: jnp.full((len(images), 10), jnp.nan), batch)["accuracy"][0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "digts"}, "unknown data set 'digts': did you mean 'digits'"),
        ({"augment": {"flp": 1.0}}, "option of augment 'flp': did you mean 'flip'"),
        ({"mix": {"mixupp": 1.0}}, "option of mix 'mixupp': did you mean 'mixup'"),
        ({"label_smothing": 0.1}, "option of task classification 'label_smothing': did you mean 'label_smoothing'"),
        ({"label_smoothing": 1.0}, r"label_smoothing is in \[0, 1\)"),
        ({"dataset": {"path": "x"}}, "dataset needs name="),
    ],
)
def test_mistakes_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_unknown_tasks_and_splits(make):
    with pytest.raises(ValueError, match="unknown task 'clasification': did you mean 'classification'"):
        tasks.create("clasification")
    with pytest.raises(ValueError, match="needs preprocess="):
        tasks.create("classification")
    with pytest.raises(ValueError, match="no split 'val'; it has: train, validation, test"):
        make().examples("val")
    with pytest.raises(ValueError, match="two tasks named"):
        tasks.register("classification")(tasks.Classification)


def test_class_weights_are_factors_on_the_training_loss(make):
    """The mean of w_c (-log p_c) over a batch, w_c = N / (classes * n_c) where balanced."""
    plain = make()
    labels = np.asarray([label for _, label in plain._dataset.source("train")])
    counts = np.bincount(labels)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(16, 10)), jnp.float32)
    batch = stacked(plain.examples("train"), 16)
    own = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), batch["label"][:, None], 1)[:, 0]
    cases = {
        "balanced": len(labels) / (10 * counts),
        "3=2.5,7=0": np.where(np.arange(10) == 3, 2.5, np.arange(10) != 7),
    }
    for given, weights in cases.items():
        task = make(class_weights=given)
        loss, _ = task.loss(lambda images: logits, batch, jax.random.key(0))
        np.testing.assert_allclose(loss, np.mean(weights[batch["label"]] * own), rtol=1e-5)
        rows = {**batch, "weight": np.ones(16, np.float32)}
        assert task.evaluate(lambda images: logits, rows) == plain.evaluate(lambda images: logits, rows)
    np.testing.assert_allclose(np.mean((len(labels) / (10 * counts))[labels]), 1)
    assert (
        make(class_weights={"3": 2.5, "7": 0})._class_weights.tolist()
        == make(class_weights="3=2.5,7=0")._class_weights.tolist()
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ballanced", '"balanced", or factors by name'),
        ("11=2", "unknown class '11'"),
        ("3=-1", "at least 0"),
        ("3=nan", "at least 0"),
    ],
)
def test_wrong_class_weights_are_refused(make, given, message):
    with pytest.raises(ValueError, match=message):
        make(class_weights=given)


def test_each_class_and_the_pairs_most_confused(make):
    task = make()
    label, predicted = np.asarray([0, 0, 0, 1, 1, 2]), np.asarray([0, 4, 4, 1, 0, 2])
    said = task.explain({"label": label, "predicted": predicted})
    assert [(line["name"], line["images"], line["accuracy"]) for line in said["classes"][:4]] == [
        ("0", 3, 1 / 3),
        ("1", 2, 0.5),
        ("2", 1, 1.0),
        ("3", 0, None),
    ]
    assert said["confused"] == [
        {"class": "0", "taken_for": "4", "images": 2},
        {"class": "1", "taken_for": "0", "images": 1},
    ]
    assert task.describe("train") == "1,293 images of 10 classes"


def test_a_teacher_gives_half_of_the_loss(make):
    """Hard: its likeliest class; soft: all its probabilities. Evaluation needs no teacher."""
    images_of = {"images": None}

    def make_teacher(name, class_names):
        assert (name, tuple(class_names)) == ({"weights": "runs/teacher"}, tuple("0123456789"))
        return lambda images: images_of.update(images=images) or jnp.flip(model(images), -1)

    def taught(**fields):
        return make(distillation={"teacher": {"weights": "runs/teacher"}, **fields}, make_teacher=make_teacher)

    plain, hard, soft = make(), taught(), taught(kind="soft", temperature=2.0, weight=0.25)
    batch = stacked(plain.examples("test"), 8)
    same = [task.evaluate(model, batch | {"weight": jnp.ones(8)})["loss"] for task in (plain, hard)]
    np.testing.assert_array_equal(*same)
    for task in (hard, soft):
        task.examples("train")
    base, got_hard, got_soft = (float(task.loss(model, batch, jax.random.key(0))[0]) for task in (plain, hard, soft))
    np.testing.assert_allclose(images_of["images"], batch["image"] / 255, atol=1e-5)
    logits, answers = model(plain.normalized(batch["image"])), jnp.flip(model(images_of["images"]), -1)
    log, log_2, target = jax.nn.log_softmax(logits), jax.nn.log_softmax(logits / 2), jax.nn.softmax(answers / 2)
    np.testing.assert_allclose(
        got_hard, 0.5 * base - 0.5 * np.mean(np.take_along_axis(log, jnp.argmax(answers, -1)[:, None], -1)), rtol=1e-5
    )
    divergence = 4 * np.mean(np.sum(target * (np.log(target) - log_2), -1))
    np.testing.assert_allclose(got_soft, 0.75 * base + 0.25 * divergence, rtol=1e-5)
    with pytest.raises(ValueError, match='kind is "hard" or "soft"'):
        taught(kind="firm")


def test_logits_reported_besides_have_a_part_of_the_loss(make):
    """Against the same targets; a model that does not report them is refused."""

    class Reporting:
        def __call__(self, images):
            return model(images)

        def aux_logits(self):
            return {"overview": jnp.flip(model(jnp.asarray(images)), -1), "other": jnp.zeros((8, 10))}

    plain, task = make(), make(aux_logits={"overview": 0.4})
    batch = stacked(plain.examples("test"), 8)
    images = plain.normalized(batch["image"])
    base = float(plain.loss(model, batch, jax.random.key(0))[0])
    labels = np.asarray(batch["label"])[:, None]
    beside = -np.mean(np.take_along_axis(jax.nn.log_softmax(jnp.flip(model(images), -1)), labels, -1))
    np.testing.assert_allclose(task.loss(Reporting(), batch, jax.random.key(0))[0], base + 0.4 * beside, rtol=1e-5)
    with pytest.raises(ValueError, match="aux_logits: the model reports no 'overview'"):
        task.loss(model, batch, jax.random.key(0))
    with pytest.raises(ValueError, match=r"aux_logits: unknown logits 'overvew'.*overview"):
        make(aux_logits={"overvew": 0.4}).loss(Reporting(), batch, jax.random.key(0))
