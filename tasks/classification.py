"""Image classification: cross entropy over labeled images, top-1 and top-5 accuracy.

Images are copied to the device as uint8 and normalized there: a quarter of the bytes to stack and copy, for a multiply
and an add that XLA fuses into the next operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from suggestions import unknown
from tasks import datasets
from tasks.augment import Augment, Preprocess, Transform
from tasks.confusion import explained
from tasks.distillation import Distillation, Teacher
from tasks.mixing import Mixing, erase, mix, smoothed
from tasks.registry import construct, register
from tasks.task import Batch, Metrics, Model, ReportsLogits


class ImageExamples:
    """Images of a split as examples: "image" (size, size, channels) uint8 and "label" int32.

    Args:
      source: labeled images.
      transform: preprocessing and augmentation.
      in_memory: keep every image as preprocessed for evaluation, and augment that in training.
      labels: the task's label for each label of the source.
    """

    def __init__(self, source: datasets.Source, transform: Transform, in_memory: bool, labels: Sequence[int]):
        self._transform = transform
        self._source: datasets.Source = source
        self._labels = np.asarray(labels, np.int32)
        if in_memory:
            self._source = [
                (transform.fitted(image), label) for image, label in (source[i] for i in range(len(source)))
            ]

    def __len__(self) -> int:
        return len(self._source)

    def get(self, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Returns one example, augmented with ``rng``, or preprocessed for evaluation without it."""
        image, label = self._source[index]
        image = self._transform.fitted(image) if rng is None else self._transform.varied(image, rng)
        return {"image": self._transform.to_array(image), "label": self._labels[label]}


def _read_weights(text: str) -> dict[str, float]:
    """Reads "cat=2,dog=0.5"."""
    try:
        return {name.strip(): float(weight) for name, weight in (part.rsplit("=", 1) for part in text.split(","))}
    except ValueError:
        raise ValueError(f'class_weights={text!r}: "balanced", or factors by name as "cat=2,dog=0.5"') from None


@register("classification")
class Classification:
    """Image classification.

    Attributes beyond those of :class:`tasks.task.Task`: ``class_names``, and ``report``, remarks about the data, "" for
    none.

    Args:
      preprocess: the model's input format (``zoo.preprocess``).
      dataset: name of a data set, or a mapping with "name" and its options.
      augment: fields of :class:`tasks.augment.Augment`.
      mix: fields of :class:`tasks.mixing.Mixing`.
      label_smoothing: fraction of a target that is spread over all classes, in [0, 1).
      image_size: side of the model's input, pixels; None is the model's own.
      class_weights: factors of the training loss of each class: "" for none, "balanced" for N / (classes * images of
        the class), so that all classes have the same total weight and the mean factor is 1, or factors by name, such as
        {"cat": 2.0} or "cat=2,dog=0.5", with 1 for the others. Evaluation is not weighted.
      class_names: names of the labels, in order, of the run that trained the model; None uses those of the data set.
        The data set may lack some, and may have them in another order.
      aux_logits: weights of additional losses, by the name of the logits that the model's modules report in training.
      distillation: fields of :class:`tasks.distillation.Distillation`.
      make_teacher: makes the teacher of ``distillation``, for images in [0, 1] and these classes.

    Raises:
      ValueError: unknown fields or names (similar ones are suggested), classes of the data set that are not in
        ``class_names``, or data that can't be used.
    """

    needs = ("preprocess", "class_names", "make_teacher")
    monitor = "accuracy"
    higher_is_better = True

    def __init__(
        self,
        preprocess: Preprocess,
        dataset: str | Mapping[str, Any] = "digits",
        augment: Mapping[str, Any] | None = None,
        mix: Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
        image_size: int | None = None,
        class_weights: str | Mapping[str, float] = "",
        class_names: Sequence[str] | None = None,
        aux_logits: Mapping[str, float] | None = None,
        distillation: Mapping[str, Any] | None = None,
        make_teacher: Callable[[Mapping[str, Any], Sequence[str]], Teacher] | None = None,
    ):
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is in [0, 1), not {label_smoothing}")
        options = {"name": dataset} if isinstance(dataset, str) else dict(dataset)
        if "name" not in options:
            raise ValueError("dataset needs name=, such as 'digits'")
        self.dataset_name = str(options.pop("name"))
        self._augment = construct("augment", Augment, dict(augment or {}))
        self._mixing = construct("mix", Mixing, dict(mix or {}))
        self._distillation = construct("distillation", Distillation, dict(distillation or {}))
        self._make_teacher = make_teacher
        self._aux_logits = dict(aux_logits or {})
        self._teacher: Teacher | None = None
        self._smoothing = label_smoothing
        self._size = image_size
        self._mean = np.asarray(preprocess.mean, np.float32)
        self._std = np.asarray(preprocess.std, np.float32)
        self._transform = Transform(self._augment, preprocess, image_size)
        self._dataset = datasets.create(self.dataset_name, **options)
        self.splits = self._dataset.splits
        self.class_names, self._labels = self._named(class_names)
        self._class_weights = self._weights(class_weights)
        self.report = self._dataset.report
        self._examples: dict[str, ImageExamples] = {}

    @property
    def preprocess(self) -> dict[str, Any]:
        """The preprocessing of evaluation, as fields of ``zoo.Preprocess``."""
        transform, whole = self._transform, self._augment.fit == "whole"
        return {
            "image_size": transform.size, "mean": self._mean.tolist(), "std": self._std.tolist(),
            "interpolation": transform.resampling.name.lower(),
            "crop_fraction": 1.0 if whole else transform.crop_fraction,
            "crop_mode": "squash" if whole else transform.crop_mode,
        }  # fmt: skip

    def model_options(self) -> dict[str, Any]:
        """Returns num_classes, in_channels and, if the task sets it, image_size."""
        options: dict[str, Any] = {"num_classes": len(self.class_names), "in_channels": len(self._mean)}
        return options if self._size is None else options | {"image_size": self._size}

    def examples(self, split: str) -> ImageExamples:
        """Returns the examples of a split.

        Raises:
          ValueError: there is no such split.
        """
        if split not in self.splits:
            raise ValueError(
                f"the data set {self.dataset_name} has no split {split!r}; it has: {', '.join(self.splits)}"
            )
        if split == "train" and self._distillation.wanted and self._teacher is None:
            # The teacher is made when training begins: evaluation does not need it.
            if self._make_teacher is None:
                raise ValueError("distillation needs make_teacher=, which makes the teacher")
            self._teacher = self._make_teacher(self._distillation.teacher, self.class_names)
        if split not in self._examples:
            self._examples[split] = ImageExamples(
                self._dataset.source(split), self._transform, self._dataset.in_memory, self._labels
            )
        return self._examples[split]

    def _named(self, names: Sequence[str] | None) -> tuple[tuple[str, ...], list[int]]:
        """The names of the labels, and the label of each of the data set's classes."""
        own = self._dataset.class_names
        if names is None:
            if len(own) < 2:
                raise ValueError(
                    f"the data set {self.dataset_name} has one class only, {own[0]!r}: classification needs two or more"
                )
            return own, list(range(len(own)))
        more = [name for name in own if name not in names]
        if more:
            listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise ValueError(
                f"the data have classes that the model was not trained on: {', '.join(more[:5])}. It knows {listed}; "
                "leave the others out, or train a model of all in another --workdir"
            )
        return tuple(names), [list(names).index(name) for name in own]

    def _weights(self, given: str | Mapping[str, float]) -> np.ndarray | None:
        """The loss factor of each class, or None."""
        if not given:
            return None
        if given == "balanced":
            source = self._dataset.source("train")
            labels = getattr(source, "labels", None) or [source[i][1] for i in range(len(source))]
            counts = np.bincount(np.asarray(self._labels)[np.asarray(labels)], minlength=len(self.class_names))
            return (len(labels) / (len(counts) * np.maximum(counts, 1))).astype(np.float32)
        weights = np.ones(len(self.class_names), np.float32)
        for name, weight in (_read_weights(given) if isinstance(given, str) else given).items():
            if name not in self.class_names:
                raise ValueError(f"class_weights: {unknown('class', name, self.class_names)}")
            if not weight >= 0:
                raise ValueError(f"class_weights: the factor of {name} is a number of at least 0, not {weight}")
            weights[self.class_names.index(name)] = weight
        return weights

    def normalized(self, images: jax.Array) -> jax.Array:
        """Normalizes uint8 images for the model, float32."""
        return images * (1 / (255 * self._std)) - self._mean / self._std

    def loss(self, model: Model, batch: Batch, rngs: jax.Array) -> tuple[jax.Array, Metrics]:
        """Returns the mean cross entropy with smoothed and mixed targets; "accuracy" is that for the class with the
        largest weight in each target.

        Raises:
          ValueError: the model does not report logits that ``aux_logits`` names.
        """
        erase_key, mix_key = jax.random.split(rngs)
        images = erase(self.normalized(batch["image"]), self._mixing.erasing, erase_key)
        targets = smoothed(batch["label"], len(self.class_names), self._smoothing)
        images, targets = mix(images, targets, self._mixing, mix_key)
        logits, heads = self._answers(model, images)
        # Cross entropy with soft targets and class factors: sum_c w_c t_c (-log p_c).
        weighted = targets if self._class_weights is None else targets * self._class_weights

        def entropy(logits: jax.Array) -> jax.Array:
            return -jnp.sum(weighted * jax.nn.log_softmax(logits), axis=-1)

        losses = entropy(heads.get("class", logits))
        if self._teacher is not None:
            taught = self._teacher(images * self._std + self._mean).astype(jnp.float32)
            losses = self._distillation.losses(losses, heads.get("distilled", logits), taught)
        for name, weight in self._aux_logits.items():
            if name not in heads:
                raise ValueError(
                    f"aux_logits: {unknown('logits', name, heads) if heads else f'the model reports no {name!r}'}"
                )
            losses = losses + weight * entropy(heads[name])
        metrics = self._metrics(logits, jnp.argmax(targets, axis=-1), losses, jnp.ones_like(losses))
        return losses.mean(), metrics

    def _answers(self, model: Model, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The model's logits, and, if the loss needs them, the logits that it reports besides: "class" and "distilled"
        for distillation, and those of ``aux_logits``.
        """
        logits = model(images).astype(jnp.float32)
        if (self._teacher is None and not self._aux_logits) or not isinstance(model, ReportsLogits):
            return logits, {}
        return logits, {name: value.astype(jnp.float32) for name, value in model.aux_logits().items()}

    def describe(self, split: str) -> str:
        """Returns the numbers of images and classes of a split."""
        return f"{len(self.examples(split)):,} images of {len(self.class_names):,} classes"

    def evaluate(self, model: Model, batch: Batch) -> Metrics:
        """Returns "loss" (plain cross entropy), "accuracy" and, for more than five classes, "top5"."""
        return self.evaluate_rows(model, batch)[0]

    def evaluate_rows(self, model: Model, batch: Batch) -> tuple[Metrics, dict[str, jax.Array]]:
        """Returns the metrics, and the label and the predicted class of each image."""
        logits = model(self.normalized(batch["image"])).astype(jnp.float32)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=-1)[:, 0]
        metrics = self._metrics(logits, batch["label"], losses, batch["weight"])
        return metrics, {"label": batch["label"], "predicted": jnp.argmax(logits, axis=-1)}

    def explain(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Returns the number of images and the accuracy of each class, and the most confused pairs (class, predicted
        class) with their counts.
        """
        return explained(rows, self.class_names, "images")

    def _metrics(self, logits: jax.Array, labels: jax.Array, losses: jax.Array, weight: jax.Array) -> Metrics:
        # the label's rank; equal logits rank by class, as argmax does
        own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        classes = jnp.arange(logits.shape[-1])
        rank = jnp.sum((logits > own) | ((logits == own) & (classes < labels[:, None])), axis=-1)
        rank = jnp.where(jnp.isnan(own[:, 0]), logits.shape[-1], rank)
        figures = {"loss": losses, "accuracy": rank < 1}
        if logits.shape[-1] > 5:
            figures["top5"] = rank < 5
        return {name: (jnp.sum(figure * weight), jnp.sum(weight)) for name, figure in figures.items()}
