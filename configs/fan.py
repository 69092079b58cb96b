"""FAN (D. Zhou et al., arXiv:2204.12451), also with TAP and ADL (Y. Guo et al., arXiv:2303.11126).

Learning rates, warm-up, stochastic depth, erasing and averaged weights are those of the authors' scripts/. The batch
size is stated for two models: 1,024 for the tiny hybrid and 4,096 for TAP's base hybrid, in both cases 1,024 for a
learning rate of 1e-3, as here for all. TAP's other sizes use FAN's recipe.
"""

from __future__ import annotations

from typing import Any

from configs.common import Architecture, digits, imagenet, vision

# Peak learning rate, epochs of warm-up, stochastic depth and erasing.
_SIZES: dict[str, tuple[float, int, float, float]] = {
    "tiny_12_p16_224": (2e-3, 5, 0.0, 0.25),
    "small_12_p16_224": (2e-3, 5, 0.2, 0.25),
    "base_18_p16_224": (2e-3, 5, 0.35, 0.3),
    "large_24_p16_224": (1e-3, 5, 0.3, 0.3),
    "tiny_8_p4_hybrid": (1e-3, 5, 0.1, 0.3),
    "small_12_p4_hybrid": (4e-3, 5, 0.25, 0.3),
    "base_16_p4_hybrid": (4e-3, 10, 0.35, 0.3),
    "large_16_p4_hybrid": (4e-3, 10, 0.45, 0.3),
}


def _variant(model: str, rate: float, warmup: int, drop_path: float, erasing: float) -> dict[str, Any]:
    return {
        "model": model,
        "model_options": {"drop_path": drop_path},
        "batch_size": round(1024 * rate / 1e-3),
        "optimizer": {"learning_rate": rate},
        "schedule": {"warmup": f"{warmup} epochs", "final": 1e-6 / rate},
        "task": {"mix": {"erasing": erasing}},
    }


ARCHITECTURE = Architecture(
    digits=digits("fan_nano", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=imagenet(
        4096,
        4e-3,
        warmup="10 epochs",
        final=0.00025,
        rand_augment="rand-m9-mstd0.5-inc1",
        mix={"mixup": 0.8, "cutmix": 1.0, "erasing": 0.3},
        ema=0.99992,
    ),
    variants={
        f"{start}{size}": _variant(f"{start}fan_{size}", *settings)
        for start in ("", "tap_")
        for size, settings in _SIZES.items()
    },
    default="base_16_p4_hybrid",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
