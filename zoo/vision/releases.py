"""Notation for the checkpoints that timm has released on the Hugging Face hub.

A line is ``model: tag classes statistics crop``, then "squash" if that is how images are cropped, the interpolation if
it is not bicubic, the license if it is not Apache-2.0 and the image size, as "384px", if it is not the model's; ``;``
separates checkpoints. ``zoo.create(model, weights=tag)`` takes one.
"""

from __future__ import annotations

from zoo.registry import Release

# Mean and standard deviation of each channel, of values in [0, 1].
STATISTICS = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def parse_releases(table: str) -> dict[str, dict[str, Release]]:
    """Releases by timm's model name and tag, the preferred ones first."""
    releases: dict[str, dict[str, Release]] = {}
    for line in table.strip().splitlines():
        model, checkpoints = line.split(": ")
        for checkpoint in checkpoints.split("; "):
            tag, classes, statistics, crop, *rest = checkpoint.split()
            mean, std = STATISTICS[statistics]
            interpolation = "bilinear" if "bilinear" in rest else "bicubic"
            crop_mode = "squash" if "squash" in rest else "center"
            pixels = next((int(word.removesuffix("px")) for word in rest if word.endswith("px")), None)
            others = [word for word in rest if word not in ("bilinear", "squash") and not word.endswith("px")]
            license, source = next(iter(others), "apache-2.0"), f"hf://timm/{model}.{tag}"
            release = Release(
                source, int(classes), license, mean, std, interpolation, float(crop), crop_mode, image_size=pixels
            )
            releases.setdefault(model, {})[tag] = release
    return releases
