"""Pictures of what :mod:`zoo.inspection` finds, by matplotlib; each is returned, ``figure.savefig(path)`` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4
COLORS = "magma"


def draw_maps(maps: Mapping[str, np.ndarray], *, example: int = 0) -> Figure:
    """Attention weights as heat maps, the mean of the heads, one for each mixer: queries down, keys across.

    Args:
      maps: of :func:`zoo.attention_maps`.
      example: row of the batch, which of windows is a window.

    Raises:
      ValueError: no maps, or matplotlib is not installed.
    """
    if not maps:
        raise ValueError("there are no maps to draw")
    figure, places = _figure(len(maps))
    for axes, (name, weights) in zip(places, maps.items(), strict=False):
        _heat(figure, axes, weights[example].mean(0), name, "key", "query")
    return figure


def draw_matrix(matrix: np.ndarray, title: str = "") -> Figure:
    """What each token of a mixer's output takes from each of its input, as a heat map.

    Its colors are logarithmic: what is under a ten-thousandth of the largest entry looks like nothing.

    Args:
      matrix: of :func:`zoo.materialize`.

    Raises:
      ValueError: matplotlib is not installed.
    """
    figure, places = _figure(1)
    from matplotlib.colors import LogNorm

    largest = float(matrix.max()) or 1.0
    _heat(
        figure,
        places[0],
        matrix,
        title,
        "input token",
        "output token",
        norm=LogNorm(1e-4 * largest, largest, clip=True),
    )
    return figure


def draw_over_image(image: np.ndarray, share: np.ndarray, grid: tuple[int, int], *, title: str = "") -> Figure:
    """What reaches one token from each patch, over the image.

    Args:
      image: (height, width, channels) of any range, which is stretched.
      share: (tokens,), as a row of :func:`zoo.attention_rollout`; prefix tokens come first and are left out.
      grid: rows and columns of patches.

    Raises:
      ValueError: fewer tokens than the grid has patches, or matplotlib is not installed.
    """
    rows, columns = grid
    if len(share) < rows * columns:
        raise ValueError(f"{len(share)} tokens are fewer than the {rows} x {columns} patches of the grid")
    figure, places = _figure(2)
    low, high = float(np.min(image)), float(np.max(image))
    shown = (np.asarray(image, np.float32) - low) / max(high - low, 1e-12)
    shown = shown[..., 0] if shown.shape[-1] == 1 else shown
    height, width = shown.shape[:2]
    patches = np.asarray(share[len(share) - rows * columns :]).reshape(rows, columns)
    for axes in places:
        axes.imshow(shown, cmap="gray", extent=(0, width, height, 0))
        axes.set(xlabel="column", ylabel="row", title="image")
    drawn = places[1].imshow(patches, cmap=COLORS, alpha=0.6, extent=(0, width, height, 0), interpolation="bilinear")
    places[1].set_title(title or "share of each patch")
    figure.colorbar(drawn, ax=places[1])
    return figure


def _figure(count: int) -> tuple[Figure, list[Any]]:
    try:
        from matplotlib.figure import Figure  # without pyplot, which would look for a display
    except ImportError as error:
        raise ValueError("drawing needs matplotlib: python -m pip install -e '.[plot]'") from error
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(4 * columns, 3.4 * rows), layout="constrained")
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in places[count:]:
        axes.remove()
    return figure, places[:count]


def _heat(figure: Figure, axes: Any, matrix: np.ndarray, title: str, across: str, down: str, **options: Any) -> None:
    drawn = axes.imshow(matrix, cmap=COLORS, aspect="auto", interpolation="nearest", **options)
    axes.set(title=title, xlabel=across, ylabel=down)
    figure.colorbar(drawn, ax=axes)
