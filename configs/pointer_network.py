"""Pointer Networks (Vinyals et al., arXiv:1506.03134) on problems of geometry.

    --config=configs/pointer_network.py                              convex hulls of 5 to 8 points, about a minute
    --config=configs/pointer_network.py:tsp,points=10                shortest tours
    --config=configs/pointer_network.py:delaunay,points=10           triangulations
    --config=configs/pointer_network.py:convex_hull,points=50,fewest=5,variant=256

The default is convex hulls: after 1000 steps (80 CPU seconds) the polygon is right for 68 % of 512 test sets, and 92 %
of the hulls' area is covered; after 2000 steps, 77 % and 96 %.

Problems also take the other options of the task (:class:`tasks.Geometry`): test_points=20 tests at another size. The
small model's settings are our choice. Those of the others are the paper's (section 4.1): plain gradient descent with a
learning rate of 1.0, batches of 128, gradients clipped to a norm of 2; the duration is our choice.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs.common import parse, parsed, run
from suggestions import unknown

VARIANTS: dict[str, dict[str, Any]] = {
    "nano": {
        "model": "pointer_network_nano",
        "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.0, "clip_norm": 2.0},
        "schedule": {"warmup": "100 steps", "final": 0.0},
        "train_for": "1000 steps", "eval_every": "500 steps", "save_every": "500 steps",
    },
    **{
        size: {
            "model": f"pointer_network_{size}",
            "optimizer": {"name": "sgd", "learning_rate": 1.0, "weight_decay": 0.0, "clip_norm": 2.0, "options": {}},
            "schedule": {"name": "constant"},
            "train_for": "100000 steps", "eval_every": "5000 steps", "save_every": "5000 steps",
        }
        for size in ("256", "512")
    },
}  # fmt: skip


def get_config(argument: str = "") -> ConfigDict:
    """Returns the config; the argument is explained at the top.

    Raises:
      ValueError: an unknown variant (the message suggests similar ones).
    """
    problem, settings = parse(argument or "convex_hull")
    variant = settings.pop("variant", "nano")
    if variant not in VARIANTS:
        raise ValueError(unknown("variant", variant, VARIANTS))
    config = run()
    config.update({"batch_size": 128, "log_every": 100, **VARIANTS[variant]})
    config.task = ConfigDict({"name": "geometry", "problem": problem, **{k: parsed(v) for k, v in settings.items()}})
    return config
