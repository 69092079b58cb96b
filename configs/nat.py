"""NAT and DiNAT (A. Hassani et al., arXiv:2204.07143, arXiv:2209.15001).

The ImageNet-1k recipe is the papers' (section 4.1), its details from the authors' repository
(SHI-Labs/Neighborhood-Attention-Transformer: classification/configs, train.py): 300 epochs at 224 pixels, AdamW, batch
1024 (128 on each of 8 GPUs), peak learning rate 1e-3, weight decay 0.05, cosine to 5e-6 after 20 epochs of warm-up, and
10 more at the end; gradients clipped at 5; stochastic depth 0.2, 0.3 and 0.5. The large models were pretrained on
ImageNet-22k and have no recipe here.

Different: the last 10 epochs at the lowest learning rate are left out. RandAugment drops color jitter 0.4, as timm does
where both are on.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("dinat_nano"),
    imagenet=deit(warmup="20 epochs", final=0.005, optimizer={"clip_norm": 5.0}),
    variants={
        **{
            name: {"model": name}
            for kind in ("nat", "dinat")
            for name in (f"{kind}_{size}" for size in ("mini", "tiny", "small", "base"))
        },
        **{name: {"model": name} for name in ("dinat_s_tiny", "dinat_s_small", "dinat_s_base")},
    },
    default="dinat_mini",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
