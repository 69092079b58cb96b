"""Rank augmentation: the output of linear attention has a lower rank than that of softmax attention; with RALA's
augmentation the rank is that of softmax attention, and so is the accuracy.

Q. Fan et al., arXiv:2411.07635. The contestants are one small vision transformer on the digits at 16 x 16 pixels with
patches of 2 x 2, whose attention is softmax, linear (feature map elu + 1), or RALA's; the width of the MLPs is chosen
so that the numbers of parameters agree within 2 %. The only positions are those of the learned table that is added to
the tokens. "rank" is the number of singular values, of 64, above a hundredth of the largest, of the output of a block's
attention as a matrix (tokens, features), the mean over blocks and 32 test images. The recipe is that of configs/vit.py,
at a learning rate of 3e-3, for 600 steps. Medians of three seeds: ranks of 2.6 with linear attention, 5.1 with softmax
attention and 34 with RALA's augmentation, and accuracies of 0.844, 0.875 and 0.992. In so few steps RALA is not near
softmax attention but far ahead of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.claims.run import Contest, Contestant, Row, main, medians, of_digits

if TYPE_CHECKING:
    from flax import nnx

PAPER = (45,)
# RALA's gate and convolution are parameters too: the MLPs of the others are wider.
KINDS: dict[str, dict[str, Any]] = {
    "softmax": {"mixer": "attention", "mlp_ratio": 1.95},
    "linear": {"mixer": "linear_attention", "mlp_ratio": 1.95},
    "rala": {"mixer": "rala", "mlp_ratio": 1.25},
}


def ranks(model: Any, images: np.ndarray, share: float = 0.01) -> np.ndarray:
    """The numerical rank of each block's mixer output: how many singular values are above ``share`` of the largest.

    Args:
      model: an isotropic vision model without prefix tokens.
      images: (batch, side, side, channels).
      share: threshold, relative to the largest singular value.

    Returns:
      int (blocks, batch).
    """
    from layers.tokens import Tokens

    model.eval()
    grid = tuple(side // model.config.patch_size for side in images.shape[1:3])
    x, tokens = model.embed(images), Tokens(grid=grid)
    if model.takes_grid:
        x, tokens = x.reshape(len(images), *grid, -1), Tokens()
    found = []
    for block in model.blocks:
        y = np.asarray(block.mixer(block.mixer_norm(x), tokens), np.float64)
        values = np.linalg.svd(y.reshape(len(images), -1, y.shape[-1]), compute_uv=False)
        found.append((values > share * values[:, :1]).sum(-1))
        x = block(x, tokens)
    return np.stack(found)


def contest(quick: bool) -> Contest:
    size = {"features": 16, "depth": 1} if quick else {"features": 64, "depth": 2}
    whole = {"image_size": 8, "patch_size": 1} if quick else {"image_size": 16, "patch_size": 2}
    whole |= {"num_heads": 2, "class_token": False, "pool": "average"}

    def measure(model: nnx.Module, contestant: Contestant) -> dict[str, float]:
        import tasks
        import zoo

        task = tasks.create("classification", preprocess=zoo.preprocess(model), augment={"fit": "whole"})
        examples = task.examples("test")
        images = task.normalized(np.stack([examples.get(index, None)["image"] for index in range(2 if quick else 32)]))
        return {"rank": float(ranks(model, np.asarray(images)).mean())}

    return of_digits(
        {label: {**size, **whole, **options} for label, options in KINDS.items()},
        quick=quick,
        steps=600,
        warmup=60,
        batch_size=32,
        learning_rate=3e-3,
        figures=("accuracy", "loss", "rank"),
        measure=measure,
    )


def verdict(rows: Sequence[Row]) -> bool:
    """The rank with linear attention is below those of softmax attention and of RALA, and RALA's is at least 0.9 times
    that of softmax attention; RALA's accuracy is above linear attention's and at least softmax attention's minus 0.01.
    """
    accuracy, rank = medians(rows, "accuracy"), medians(rows, "rank")
    return (
        rank["linear"] < min(rank["softmax"], rank["rala"])
        and rank["rala"] >= 0.9 * rank["softmax"]
        and accuracy["rala"] > accuracy["linear"]
        and accuracy["rala"] >= accuracy["softmax"] - 0.01
    )


def run(arguments: list[str] | None = None) -> None:
    main("rank_augmented", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
