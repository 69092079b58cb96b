#!/bin/sh
# orbax-checkpoint 0.12.8, jax 0.10.2 (CPU): CheckpointManager with best_fn, best_mode="min" and max_to_keep=2, for evaluations one of which gives NaN, as
# after a step in half precision. Expected: the best two of the others are kept; NaN is no best, and takes no part or counts as the worst. Seen: with losses
# of 0.5, NaN, 0.6, 0.7 the checkpoint of 0.5 is deleted and those of 0.6 and 0.7 are kept: the steps are sorted by comparing numbers with NaN, which leaves
# those before and after it unsorted, and best_step() is taken from what is left. Without the NaN 0.5 and 0.6 are kept. The best weights are gone from the
# disk, without a warning.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import logging
import math
import pathlib
import sys
import tempfile

import jax.numpy as jnp
import orbax.checkpoint as ocp

logging.disable(logging.CRITICAL)
found = {}
with tempfile.TemporaryDirectory() as folder:
    for number, losses in enumerate(((0.5, 0.8, 0.6, 0.7), (0.5, math.nan, 0.6, 0.7))):
        options = ocp.CheckpointManagerOptions(max_to_keep=2, best_fn=lambda metrics: metrics["loss"], best_mode="min")
        with ocp.CheckpointManager(pathlib.Path(folder) / str(number), options=options) as manager:
            for step, loss in enumerate(losses):
                manager.save(step, args=ocp.args.StandardSave({"weights": jnp.ones(2)}), metrics={"loss": loss})
                manager.wait_until_finished()
            found[str(losses)] = {"kept": [losses[step] for step in sorted(manager.all_steps())], "best": losses[manager.best_step()]}
print("orbax-checkpoint", ocp.__version__, "by losses:", found)
right, wrong = found.values()
sys.exit(not (right == {"kept": [0.5, 0.6], "best": 0.5} and wrong == {"kept": [0.6, 0.7], "best": 0.6}))
PYTHON
