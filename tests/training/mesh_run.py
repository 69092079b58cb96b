"""Trains a small language model on a mesh, in a process of its own: ``python -m tests.training.mesh_run JSON``.

The JSON is a list of runs, each {"workdir", "mesh", "steps", and fields of the config}. Prints one line of JSON a run:
the loss of each step, what of the parameters each device holds, and which are split.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from layers.state import flatten
from training import assembly, loop
from training.command import one_message
from training.processes import join

COMMON = Path(__file__).resolve().parents[2] / "configs" / "common.py"


def run(
    workdir: str, mesh: dict[str, int], steps: int, model: str = "transformer_nano", **fields: Any
) -> dict[str, Any]:
    config = runpy.run_path(str(COMMON))["run"]()
    config.update(
        {
            "model": model,
            "batch_size": 8,
            "train_for": f"{steps} steps",
            "eval_every": "4 steps",
            "save_every": "2 steps",
            "log_every": 1,
        }
    )
    config.schedule.name = "constant"
    config.mesh = ConfigDict(mesh)
    config.model_options = ConfigDict({"features": 32, "depth": 1, "num_heads": 4, **fields.pop("model_options", {})})
    copying = {"name": "selective_copying", "length": 12, "memorize": 4, "num_eval": 8}  # 16 tokens
    config.task = ConfigDict(fields.pop("task", copying))
    config.update(fields)
    task, made = assembly.build(config)
    held: dict[str, int] = {}
    split = {}
    for name, array in flatten(made).items():
        split[name] = str(array.sharding.spec) if isinstance(array.sharding, jax.sharding.NamedSharding) else ""
        for shard in array.addressable_shards:
            held[str(shard.device)] = held.get(str(shard.device), 0) + shard.data.size
    result = loop.train(config, made, task, Path(workdir), extend=True)
    lines = (
        [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
        if jax.process_index() == 0
        else []
    )
    losses = {line["step"]: line["loss"] for line in lines if line["split"] == "train"}
    return {"step": result.step, "losses": losses, "figures": result.figures, "held": held, "split": split}


def main() -> None:
    with one_message():
        for options in json.loads(sys.argv[1]):
            join(options.pop("distributed", {}))
            print(json.dumps(run(**options)), flush=True)


if __name__ == "__main__":
    main()
