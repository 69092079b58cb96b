"""Descriptions of models next to their weights: the ``config.json`` of transformers or timm, in a folder or on the hub.

Weights do not show all that a model is: the epsilon of its norms, its activation, its number of heads, the names of its
classes. A family's ``described`` maps our fields to those of transformers (:class:`zoo.registry.Variant`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from zoo.registry import Variant, list_models, variant
from zoo.sources import WeightsError, config_beside


@dataclasses.dataclass(frozen=True)
class Description:
    """What a ``config.json`` says.

    Attributes:
      fields: of our configuration, with their values there.
      class_names: of the head's classes, or none.
      preprocess: fields of :class:`zoo.Preprocess`.
      unread: further entries, which may matter and are not compared.
    """

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    preprocess: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unread: str = ""


def describe(entry: Variant, source: Any) -> Description:
    """The description next to the weights at ``source``; empty where there is no such file, or it is of neither
    library.

    Raises:
      WeightsError: it is damaged, or says something that models of this family can't be.
    """
    text = config_beside(source)
    if text is None:
        return Description()
    try:
        config = dict(json.loads(text))
    except ValueError as error:
        raise WeightsError(f"config.json of {source} is damaged ({error}): get it again, or give the file of weights alone") from error
    try:
        if "model_type" in config:
            return _of_transformers(entry, config)
        return _of_timm(entry, config) if "architecture" in config else Description()
    except ValueError as error:
        raise WeightsError(f"config.json of {source} is of a model that {entry.name} can't be: {error}") from error


def _of_transformers(entry: Variant, config: Mapping[str, Any]) -> Description:
    one = config.get("vision_config") or config  # of two towers, the image tower
    labels = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    names = tuple(labels[index] for index in sorted(labels))
    unnamed = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    found = {field: read(one) for field, read in entry.described.items()}
    unread = "" if entry.described else f"model_type={config['model_type']!r}"
    return Description({field: value for field, value in found.items() if value is not None}, () if unnamed else names, unread=unread)


def _of_timm(entry: Variant, config: Mapping[str, Any]) -> Description:
    cfg = config.get("pretrained_cfg") or {}
    kept = {"mean": "mean", "std": "std", "interpolation": "interpolation", "crop_pct": "crop_fraction", "crop_mode": "crop_mode"}
    preprocess = {ours: cfg[theirs] for theirs, ours in kept.items() if theirs in cfg}
    other = variant(config["architecture"]).config if config["architecture"] in list_models() else None
    fields = {field: getattr(other, field) for field in entry.described if hasattr(other, field)}
    beyond = {name: value for name, value in (config.get("model_args") or {}).items() if name not in ("img_size", "num_classes", "in_chans")}
    return Description(fields, tuple(map(str, cfg.get("label_names") or ())), preprocess, f"model_args={beyond}" if beyond else "")
