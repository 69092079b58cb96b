"""Plots the learning curve of a run from its metrics.jsonl, where matplotlib is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = "curve.png"


def draw(workdir: Path, monitor: str) -> str:
    """Draws loss and ``monitor`` of training and validation over steps into ``curve.png``.

    Returns:
      "", or a line that says why there is no plot.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot, which would look for a display
    except ImportError:
        return f"no {FILE}: python -m pip install matplotlib"
    records: list[dict[str, Any]] = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    names = list(dict.fromkeys(("loss", monitor)))
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split, style in (("train", "-"), ("validation", "o-")):
            points = [(r["step"], r[name]) for r in records if r["split"] == split and r.get(name) is not None]
            if points:
                axes.plot(*zip(*points), style, label=split, markersize=3)
        axes.set(xlabel="step", ylabel=name.replace("_", " "))
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend()
    figure.savefig(workdir / FILE, dpi=120)
    return ""
