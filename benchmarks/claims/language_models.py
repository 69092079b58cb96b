"""Byte language modeling on Python's standard library: six families of mixers, same parameters, same bytes.

Transformer, Mamba, Mamba-2, a hybrid of Mamba and attention, Gated DeltaNet, and Titans with its memory as context.

Bits per byte of the held-out modules, side by side: no ranking is claimed. The numbers of parameters agree within 2 %,
and every run reads the same 1.6 million bytes in the same order. That is few enough for two cores, and a sixth of the
training set, so the comparison is of how fast the models learn. Uniformly random bytes cost 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.claims.run import Contest, Contestant, Row, main

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer": ("transformer_nano", {"depth": 2, "hidden": 440}),
    "mamba": ("mamba_nano", {"depth": 4}),
    "mamba2": ("mamba2_nano", {"depth": 4}),
    "hybrid": ("mamba_nano", {"depth": 5, "pattern": ({"name": "mamba", "step_rank": 4}, "attention")}),
    "gated delta net": ("gated_delta_net_nano", {"depth": 2, "hidden": 390}),
    "titans, memory as context": ("titans_mac_nano", {"depth": 2, "hidden": 130}),
}


def _shrunk(options: dict[str, Any], quick: bool) -> dict[str, Any]:
    return {"features": 16, "num_heads": 2, "depth": len(options.get("pattern", (1,)))} if quick else {}


def contest(quick: bool) -> Contest:
    task: dict[str, Any] = {"name": "text", "sequence_length": 256}
    if quick:
        task = {"name": "text", "dataset": {"name": "files", "path": __file__}, "sequence_length": 32}
    return Contest(
        contestants=[
            Contestant(
                label, model, task, {**options, **_shrunk(options, quick)}, {"optimizer": {"options": {"b2": 0.95}}}
            )
            for label, (model, options) in MODELS.items()
        ],
        steps=4 if quick else 800,
        batch_size=4 if quick else 8,
        learning_rate=3e-3,
        evaluations=1 if quick else 4,
        figures=("bits_per_byte", "accuracy"),
    )


def verdict(rows: Sequence[Row]) -> bool:
    """No ranking is claimed, only that the comparison is fair: numbers of parameters within 2 % and the same number of
    steps.
    """
    sizes = [row["parameters"] for row in rows]
    return max(sizes) <= 1.02 * min(sizes) and len({row["steps"] for row in rows}) == 1


def run(arguments: list[str] | None = None) -> None:
    main("language_models", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
