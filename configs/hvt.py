"""HVT (Z. Pan et al., arXiv:2103.10619), trained as DeiT (H. Touvron et al., arXiv:2012.12877).

The recipe for all sizes is DeiT's, with a weight decay of 0.025 and without repeated augmentation (the authors'
config/).
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("hvt_nano_patch4_32", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=deit(model_options={"drop_path": 0.1}, optimizer={"weight_decay": 0.025}),
    variants={
        name: {"model": f"hvt_{name}"} for name in ("tiny_1", "small_0", "small_1", "small_2", "small_3", "small_4")
    },
    default="small_1",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
