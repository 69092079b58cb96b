"""Image classification: cross entropy over labelled images, top-1 and top-5 accuracy.

Images reach the device as uint8 and are normalised there: a quarter of the bytes to stack and to
copy, for a multiply and an add that XLA fuses into what follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tasks import datasets
from tasks.augment import Augment, Preprocess, Transform
from tasks.mixing import Mixing, erase, mix, smoothed
from tasks.registry import construct, register
from tasks.task import Batch, Metrics, Model


class ImageExamples:
    """Images of a split as examples: "image" (size, size, channels) uint8 and "label" int32.

    Args:
      source: labelled images.
      transform: fits them to the model.
      in_memory: keep every image in its evaluation form, and vary that in training.
    """

    def __init__(self, source: datasets.Source, transform: Transform, in_memory: bool):
        self._transform = transform
        self._source: datasets.Source = source
        if in_memory:
            self._source = [(transform.fitted(image), label) for image, label in (source[i] for i in range(len(source)))]

    def __len__(self) -> int:
        return len(self._source)

    def get(self, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Returns one example; without ``rng``, in evaluation form."""
        image, label = self._source[index]
        image = self._transform.fitted(image) if rng is None else self._transform.varied(image, rng)
        return {"image": self._transform.to_array(image), "label": np.asarray(label, np.int32)}


@register("classification")
class Classification:
    """Image classification.

    Attributes beyond those of :class:`tasks.task.Task`: ``class_names``, and ``report``: what to know
    about the data, "" for nothing.

    Args:
      preprocess: what the model wants of its images (``zoo.preprocess``).
      dataset: its name, or a mapping with "name" and the options of that data set.
      augment: fields of :class:`tasks.augment.Augment`.
      mix: fields of :class:`tasks.mixing.Mixing`.
      label_smoothing: part of a target that is spread over all classes, in [0, 1).
      image_size: side of the model's input, pixels; None is the model's own.

    Raises:
      ValueError: unknown fields or names (near ones are named), or data that can't be used.
    """

    needs = ("preprocess",)
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
    ):
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is in [0, 1), not {label_smoothing}")
        options = {"name": dataset} if isinstance(dataset, str) else dict(dataset)
        if "name" not in options:
            raise ValueError("dataset needs name=, such as 'digits'")
        self.dataset_name = str(options.pop("name"))
        self._augment = construct("augment", Augment, dict(augment or {}))
        self._mixing = construct("mix", Mixing, dict(mix or {}))
        self._smoothing = label_smoothing
        self._size = image_size
        self._mean = np.asarray(preprocess.mean, np.float32)
        self._std = np.asarray(preprocess.std, np.float32)
        self._transform = Transform(self._augment, preprocess, image_size)
        self._dataset = datasets.create(self.dataset_name, **options)
        self.splits = self._dataset.splits
        self.class_names = self._dataset.class_names
        self.report = self._dataset.report
        if self.report:
            logging.warning("%s", self.report)
        self._examples: dict[str, ImageExamples] = {}

    @property
    def preprocess(self) -> dict[str, Any]:
        """How an image becomes an example to evaluate, in the fields of ``zoo.Preprocess``."""
        transform, whole = self._transform, self._augment.fit == "whole"
        return {
            "image_size": transform.size, "mean": self._mean.tolist(), "std": self._std.tolist(), "interpolation": transform.resampling.name.lower(),
            "crop_fraction": 1.0 if whole else transform.crop_fraction, "crop_mode": "squash" if whole else transform.crop_mode,
        }  # fmt: skip

    def model_options(self) -> dict[str, Any]:
        """Returns num_classes, in_channels and, where the task sets it, image_size."""
        options: dict[str, Any] = {"num_classes": len(self.class_names), "in_channels": len(self._mean)}
        return options if self._size is None else options | {"image_size": self._size}

    def examples(self, split: str) -> ImageExamples:
        """Returns the examples of a split.

        Raises:
          ValueError: there is no such split.
        """
        if split not in self.splits:
            raise ValueError(f"the data set {self.dataset_name} has no split {split!r}; it has: {', '.join(self.splits)}")
        if split not in self._examples:
            self._examples[split] = ImageExamples(self._dataset.source(split), self._transform, self._dataset.in_memory)
        return self._examples[split]

    def normalized(self, images: jax.Array) -> jax.Array:
        """Returns uint8 images as the model wants them, float32."""
        return images * (1 / (255 * self._std)) - self._mean / self._std

    def loss(self, model: Model, batch: Batch, rngs: jax.Array) -> tuple[jax.Array, Metrics]:
        """Returns the mean cross entropy with smoothed and mixed targets; "accuracy" is against the heaviest class of each target."""
        erase_key, mix_key = jax.random.split(rngs)
        images = erase(self.normalized(batch["image"]), self._mixing.erasing, erase_key)
        targets = smoothed(batch["label"], len(self.class_names), self._smoothing)
        images, targets = mix(images, targets, self._mixing, mix_key)
        logits = model(images).astype(jnp.float32)
        losses = -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)
        metrics = self._metrics(logits, jnp.argmax(targets, axis=-1), losses, jnp.ones_like(losses))
        return losses.mean(), metrics

    def evaluate(self, model: Model, batch: Batch) -> Metrics:
        """Returns "loss" (plain cross entropy), "accuracy" and, beyond five classes, "top5"."""
        logits = model(self.normalized(batch["image"])).astype(jnp.float32)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=-1)[:, 0]
        return self._metrics(logits, batch["label"], losses, batch["weight"])

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
