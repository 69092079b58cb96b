#!/bin/sh
# datasets 5.2.0, grain 0.2.18: IterableDataset.shuffle(seed=0).repeat(3), for an endless or a longer stream of training
# examples. Expected: another order in every repetition, as grain's shuffle followed by repeat and tf.data's have it, and as
# set_epoch gives it from outside. Seen: the order of the first repetition three times over, as the generator is copied at the
# start of each and the epoch does not count. In PyTorch's loop over epochs set_epoch mends it; inside of repeat nothing does,
# so that batches of equal size hold the same examples together for ever. repeat(3).shuffle() draws examples of two repetitions
# from one buffer, some twice before others once. No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 grain==0.2.18
cd "$folder"
HF_HUB_OFFLINE=1 JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import datasets
import grain.python as grain

size = 24


def parts(read):
    return [read[start : start + size] for start in range(0, len(read), size)]


def rows(stream):
    return [row["id"] for row in stream]


def stream():
    yield from ({"id": i} for i in range(size))


shuffled = datasets.IterableDataset.from_generator(stream).shuffle(seed=0, buffer_size=size)
orders = {"shuffle, repeat": parts(rows(shuffled.repeat(3)))}
orders["set_epoch"] = []
for epoch in range(3):
    shuffled.set_epoch(epoch)
    orders["set_epoch"].append(rows(shuffled))
orders["set_epoch, repeat"] = parts(rows(shuffled.repeat(3)))
orders["grain"] = parts(list(grain.MapDataset.range(size).shuffle(seed=0).repeat(3)))
versions = {name: importlib.metadata.version(name) for name in ("datasets", "grain")}
found = {name: len(set(map(tuple, order))) for name, order in orders.items()}
print(versions, "different orders in three repetitions:", found, "of datasets:", orders["shuffle, repeat"])
whole = all(sorted(part) == list(range(size)) for order in orders.values() for part in order)
shuffles = orders["shuffle, repeat"][0] != list(range(size))
sys.exit(not (whole and shuffles and list(found.values()) == [1, 3, 1, 3]))
PYTHON
