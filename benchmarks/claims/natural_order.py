"""The order in which an image is read: LION with decays along two curves that visit neighboring patches one after the
other is better than with decays along the rows, and that is better than without decays.

A. Afzal et al., arXiv:2502.16249 (ImageNet, base size: 74.7 without decays, LION-LIT; 77.8 with fixed ones, LION-D;
80.2 with those of the natural order). One small vision transformer on the digits at 32 x 32 pixels, 8 x 8 patches of 4
x 4 pixels with a class token and learned positions; only its mixer differs. Medians of three seeds: 0.928 in natural
order, 0.833 in raster order and 0.964 without decays. The order matters as in the paper; on images this small decays do
not help.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.claims.run import Contest, Row, main, medians, of_digits

PAPER = (130,)
NATURAL, RASTER, LIT = "LION-D, natural order", "LION-D, raster", "LION-LIT"
MIXERS: dict[str, dict[str, Any]] = {
    NATURAL: {"name": "lion_natural", "decay": "fixed"},
    RASTER: {"name": "lion", "decay": "fixed"},
    LIT: {"name": "lion", "decay": "none"},
}


def contest(quick: bool) -> Contest:
    size = {"features": 32, "depth": 1} if quick else {"features": 64, "depth": 4}
    return of_digits(
        {label: {**size, "num_heads": 4, "mixer": mixer} for label, mixer in MIXERS.items()},
        quick=quick,
        steps=1200,
        warmup=60,
        figures=("accuracy", "loss"),
    )


def verdict(rows: Sequence[Row]) -> bool:
    """The accuracy of LION-D is higher in natural order than in raster order, and in raster order it is above that of
    LION-LIT.
    """
    accuracy = medians(rows, "accuracy")
    return accuracy[NATURAL] > accuracy[RASTER] > accuracy[LIT]


def run(arguments: list[str] | None = None) -> None:
    main("natural_order", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
