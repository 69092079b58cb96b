#!/bin/sh
# orbax-checkpoint 0.12.8, jax 0.10.2 (CPU): checkpoints of trees of dictionaries whose keys hold dots, as PyTorch's names of
# weights do, next to nested ones. Expected: each array comes back under its key, as it does with other characters (a slash, an
# underscore), or an error. Seen: arrays are stored by their keys joined by dots, so that {"a.b": x} and {"a": {"b": y}}, or
# {"layer.0": {"w": x}} and {"layer": {"0.w": y}}, are one and the same: both are saved without an error, one overwrites the
# other, and both come back as that one. StandardCheckpointer, PyTreeCheckpointer and CheckpointManager are alike. No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import logging
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

logging.disable(logging.CRITICAL)


def trees(mark):
    yield {f"a{mark}b": jnp.full(3, 1.0), "a": {"b": jnp.full(3, 2.0)}}
    yield {f"layer{mark}0": {"w": jnp.full((2, 2), 1.0)}, "layer": {f"0{mark}w": jnp.full((2, 2), 2.0)}}


def values(tree):
    return sorted({float(x) for leaf in jax.tree.leaves(tree) for x in leaf.ravel()})


found = {}
with tempfile.TemporaryDirectory() as folder:
    for mark, name in ((".", "dot"), ("/", "slash"), ("_", "underscore")):
        for number, tree in enumerate(trees(mark)):
            path = pathlib.Path(folder) / f"{name}{number}"
            with ocp.StandardCheckpointer() as standard:
                standard.save(path / "standard", tree)
                standard.wait_until_finished()
                restored = [standard.restore(path / "standard"), standard.restore(path / "standard", tree)]
            with ocp.PyTreeCheckpointer() as other:
                other.save(path / "tree", tree)
                restored.append(other.restore(path / "tree"))
            with ocp.CheckpointManager(path / "manager") as manager:
                manager.save(0, args=ocp.args.StandardSave(tree))
                manager.wait_until_finished()
                restored.append(manager.restore(0, args=ocp.args.StandardRestore(tree)))
            same = all(jax.tree.structure(r) == jax.tree.structure(tree) for r in restored)
            found[name, number] = {"keys are kept": same, "values, 1 and 2 were saved": [values(r) for r in restored]}
print("orbax-checkpoint", ocp.__version__, "jax", jax.__version__, "by separator and tree:", found)
kept = all(f["keys are kept"] for f in found.values())
right = all(v == [1, 2] for (name, _), f in found.items() if name != "dot" for v in f["values, 1 and 2 were saved"])
lost = all(len(v) == 1 for (name, _), f in found.items() if name == "dot" for v in f["values, 1 and 2 were saved"])
sys.exit(not (kept and right and lost))
PYTHON
