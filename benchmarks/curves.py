"""Curves of many contestants in one panel, each with its name beside its end."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = 50
"""Lines of text that fit beside a panel of nine inches."""


def against_length(
    axes: Axes,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    lengths: Sequence[int],
    *,
    lines: int = LINES,
    names: Sequence[str] = (),
) -> None:
    """Draws curves on logarithmic axes, with their names beside their ends, moved apart where they would overlap.

    Args:
      axes: the panel to draw in.
      curves: the points (length, value) of each curve, by name; at least one each.
      lengths: all lengths, for the ticks of the axis.
      lines: how many lines of text fit beside the panel.
      names: of all contestants, to keep the same colors in several panels; default by the curves' ends.
    """
    values = [value for points in curves.values() for _, value in points]
    low, high = min(values) / 1.5, max(values) * 1.5
    axes.set(xscale="log", yscale="log", xlim=(lengths[0] / 1.15, lengths[-1] * 8), ylim=(low, high))
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    ends = sorted(curves, key=lambda name: curves[name][-1][1])
    places = centered([curves[name][-1][1] for name in ends], (high / low) ** (1 / lines))
    for name, place in zip(ends, places, strict=True):
        number = (names or ends).index(name)
        style = ("-", "--", ":")[number // 10 % 3]
        color = f"C{number % 10}"
        axes.plot(*zip(*curves[name], strict=True), style, marker="o", markersize=3, color=color, label=name)
        axes.annotate(
            name, curves[name][-1], (lengths[-1] * 1.5, place), fontsize=8.5, color=color, va="center",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "linestyle": style, "relpos": (0, 0.5)},
        )  # fmt: skip


def centered(values: Sequence[float], apart: float) -> list[float]:
    """Places near ascending ``values``, each at least a factor ``apart`` above the one before; groups that would
    overlap are centered on their common middle.
    """
    groups: list[list[float]] = []  # of logarithms to the base ``apart``: the least place, and the values

    def start(group: list[float]) -> float:
        return statistics.fmean(value - number for number, value in enumerate(group))

    for value in values:
        groups.append([math.log(value, apart)])
        while len(groups) > 1 and start(groups[-2]) + len(groups[-2]) > start(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    return [apart ** (start(group) + number) for group in groups for number in range(len(group))]
