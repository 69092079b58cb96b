"""Descriptions of models next to their weights: the ``config.json`` of transformers, flash-linear-attention or timm,
and the ``preprocessor_config.json`` of transformers, in a folder or on the hub.

Weights alone do not determine a model: they don't hold the epsilon of its norms, its activation, its number of heads,
the names of its classes or the preprocessing of its images. A family's ``described`` maps our fields to those of
transformers (:class:`zoo.registry.Variant`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from zoo.registry import Variant, list_models, variant
from zoo.sources import WeightsError, file_beside


@dataclasses.dataclass(frozen=True)
class Description:
    """What a ``config.json`` says.

    Attributes:
      fields: fields of our configuration, with the values stated there.
      class_names: names of the head's classes; empty if there are none.
      preprocess: fields of :class:`zoo.Preprocess`.
      unread: further entries that may matter and are not applied, by the file that has them.
    """

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    preprocess: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unread: Mapping[str, str] = dataclasses.field(default_factory=dict)


def describe(entry: Variant, source: Any) -> Description:
    """The description next to the weights at ``source``; empty if there is no such file or it has another format.

    Raises:
      WeightsError: it is damaged, or describes a model that this family can't represent.
    """
    config = _read(source, "config.json")
    try:
        if "model_type" in config:
            found = _of_transformers(entry, config)
        else:
            found = _of_timm(entry, config) if "architecture" in config else Description()
    except ValueError as error:
        raise WeightsError(f"config.json of {source} is of a model that {entry.name} can't be: {error}") from error
    if found.preprocess or not hasattr(entry.config, "image_size"):
        return found
    preprocess, unread = _of_processor(_read(source, PROCESSOR))
    return dataclasses.replace(found, preprocess=preprocess, unread={**found.unread, **unread})


PROCESSOR = "preprocessor_config.json"


def _read(source: Any, name: str) -> dict[str, Any]:
    """The object in a JSON file next to the weights at ``source``; an empty one where there is no such file."""
    text = file_beside(source, name)
    try:
        return {} if text is None else dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"{name} of {source} is damaged ({error}): get it again, or give the file of weights alone"
        ) from error


def _of_transformers(entry: Variant, config: Mapping[str, Any]) -> Description:
    one = config.get("vision_config") or config  # the image tower of a two-tower model
    labels = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    names = tuple(labels[index] for index in sorted(labels))
    unnamed = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    found = {field: read(one) for field, read in entry.described.items()}
    unread = {} if entry.described else {"config.json": f"model_type={config['model_type']!r}"}
    return Description(
        {field: value for field, value in found.items() if value is not None}, () if unnamed else names, unread=unread
    )


def _of_timm(entry: Variant, config: Mapping[str, Any]) -> Description:
    cfg = config.get("pretrained_cfg") or {}
    kept = {
        "mean": "mean",
        "std": "std",
        "interpolation": "interpolation",
        "crop_pct": "crop_fraction",
        "crop_mode": "crop_mode",
    }
    preprocess = {ours: cfg[theirs] for theirs, ours in kept.items() if theirs in cfg}
    other = variant(config["architecture"]).config if config["architecture"] in list_models() else None
    fields = {field: getattr(other, field) for field in entry.described if hasattr(other, field)}
    beyond = {
        name: value
        for name, value in (config.get("model_args") or {}).items()
        if name not in ("img_size", "num_classes", "in_chans")
    }
    return Description(
        fields,
        tuple(map(str, cfg.get("label_names") or ())),
        preprocess,
        {"config.json": f"model_args={beyond}"} if beyond else {},
    )


# PIL's filters by number.
_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
# Processors for which a single number is the length of the shorter side; for the others it is a square's side.
_SHORTER_SIDE = ("CLIP", "Bit", "ConvNext")


def _of_processor(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Fields of :class:`zoo.Preprocess`, and the entries that have no equivalent there, by file."""
    if not config:
        return {}, {}
    unread = {name: config[name] for name in ("do_resize", "do_rescale") if not config.get(name, True)}
    if abs(255 * config.get("rescale_factor", 1 / 255) - 1) > 1e-3:
        unread["rescale_factor"] = config["rescale_factor"]
    found: dict[str, Any] = {}
    if not config.get("do_normalize", True):
        found = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    else:
        found |= {
            ours: tuple(config[theirs])
            for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
            if theirs in config
        }
    if (resample := config.get("resample")) in _FILTERS:
        found["interpolation"] = _FILTERS[resample]
    elif resample is not None:
        unread["resample"] = resample
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    side, shorter = _side(config.get("size"), kind.startswith(_SHORTER_SIDE))
    if side is None:
        unread |= {"size": config["size"]} if config.get("size") else {}
    elif "crop_pct" in config:  # ConvNeXt: a central crop of small images, none of larger ones
        found |= (
            {"crop_mode": "center", "crop_fraction": config["crop_pct"]}
            if side < 384
            else {"crop_mode": "squash", "crop_fraction": 1.0}
        )
    else:
        crop = _side(config.get("crop_size"), shorter)[0] if config.get("do_center_crop") else None
        found |= {"crop_mode": "center" if shorter else "squash", "crop_fraction": (crop or side) / side}
    return found, {PROCESSOR: ", ".join(f"{name}={value!r}" for name, value in unread.items())} if unread else {}


def _side(size: Any, shorter: bool) -> tuple[int | None, bool]:
    """The side in pixels that images are resized to, and whether it is the shorter one; None if the size is neither a
    shorter side nor a square.
    """
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), True
        return (
            (int(size["height"]), False)
            if size.get("height") and size.get("height") == size.get("width")
            else (None, False)
        )
    return (int(size), shorter) if isinstance(size, int) else (None, shorter)
