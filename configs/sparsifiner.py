"""Sparsifiner (C. Wei et al., arXiv:2303.13755).

The ImageNet-1k recipe is DeiT's (H. Touvron et al., arXiv:2012.12877) for models trained from scratch, which is our
choice. The authors start from a DeiT's weights (lim142857/Sparsifiner: sparsifiner_default_config.yaml): 5 epochs with
``--config.model_options.keep=1.0``, which report the loss of the predictors, at a peak learning rate of 3e-4, then 45
epochs at 8e-5 with a quarter of the connections and the dense model as teacher (``--config.task.distillation``).
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("sparsifiner_nano_patch4_32", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=deit(model_options={"drop_path": 0.1}),
    variants={size: {"model": f"sparsifiner_{size}_patch16_224"} for size in ("tiny", "small", "base")},
    default="small",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
