#!/bin/sh
# jax 0.10.2 (CPU): pallas_call with interpret=True, where a block or a slice reaches over the end of an array. Expected: NaN, as a block that lies partly
# over the end is filled with NaN, so that a kernel that reads a neighbor's block at the ends of a text is found out. Seen: a block that lies wholly outside
# is another block of the array, on reading and on writing: after the end the last one, before the start the last one too, as a negative start counts from the
# end. A window of the blocks before, at and after each block therefore reads the end of the text at its start. pl.ds that reaches over the end gives the last
# rows of the array, all of them, moved. No error. InterpretParams() of pallas.tpu raises in each of these cases.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import logging
import sys

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

logging.disable(logging.CRITICAL)
x = jnp.arange(12.0)
block, three = pl.BlockSpec((4,), lambda i: i), jax.ShapeDtypeStruct((12,), x.dtype)


def copy(x_ref, y_ref):
    y_ref[...] = x_ref[...]


def shifted(by, length, interpret):
    """Reads block i + by of the first so many numbers into block i."""
    spec = pl.BlockSpec((4,), lambda i: i + by)
    return pl.pallas_call(copy, grid=3, in_specs=[spec], out_specs=block, out_shape=three, interpret=interpret)(x[:length])


def window(interpret):
    """The sum of the blocks before, at and after each block."""
    def add(a_ref, b_ref, c_ref, y_ref):
        y_ref[...] = a_ref[...] + b_ref[...] + c_ref[...]

    specs = [pl.BlockSpec((4,), lambda i, by=by: i + by) for by in (-1, 0, 1)]
    return pl.pallas_call(add, grid=3, in_specs=specs, out_specs=block, out_shape=three, interpret=interpret)(x, x, x)


def written_before(interpret):
    spec = pl.BlockSpec((4,), lambda i: 1 - 2 * i)  # block 1, then block -1
    return pl.pallas_call(copy, grid=2, in_specs=[block], out_specs=spec, out_shape=jax.ShapeDtypeStruct((8,), x.dtype), interpret=interpret)(x[:8])


def slices(interpret):
    def read(x_ref, y_ref):
        y_ref[...] = x_ref[pl.ds(pl.program_id(0) * 3, 4)]

    return pl.pallas_call(read, grid=4, out_specs=block, out_shape=jax.ShapeDtypeStruct((16,), x.dtype), interpret=interpret)(x)


cases = {
    "partly over the end": lambda i: shifted(0, 10, i), "after the end": lambda i: shifted(1, 12, i), "before the start": lambda i: shifted(-1, 12, i),
    "window": window, "written before the start": written_before, "pl.ds": slices,
}
found = {}
for name, case in cases.items():
    found[name] = [round(float(v), 1) for v in case(True)]
    try:
        case(pltpu.InterpretParams()).block_until_ready()
        found[name, "raises"] = False
    except Exception:
        found[name, "raises"] = True
print("jax", jax.__version__, found)
numbers = [float(v) for v in x]
written = found["written before the start"]
right = str(found["partly over the end"]) == str([*numbers[:10], float("nan"), float("nan")]) and not found["partly over the end", "raises"]
blocks = numbers[:4], numbers[4:8], numbers[8:]
wrong = {
    "after the end": [*blocks[1], *blocks[2], *blocks[2]], "before the start": [*blocks[2], *blocks[0], *blocks[1]],
    "window": [a + b + c for i, j, k in ((2, 0, 1), (0, 1, 2), (1, 2, 2)) for a, b, c in zip(blocks[i], blocks[j], blocks[k])],
    "pl.ds": [*numbers[:4], *numbers[3:7], *numbers[6:10], *numbers[8:]],
}
right = right and written[4:] == [*blocks[1]] and found["written before the start", "raises"]
sys.exit(not (right and all(found[name] == value and found[name, "raises"] for name, value in wrong.items())))
PYTHON
