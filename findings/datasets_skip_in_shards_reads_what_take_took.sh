#!/bin/sh
# datasets 5.2.0: IterableDataset.take(n) for validation and skip(n) for training, as the streaming guide splits a set, whose
# training half is then read in shards: split_dataset_by_node, or the workers of a PyTorch DataLoader. Expected: n is a number
# of examples of the set, as the documentation has it, and the halves have none in common. Seen: in shards n is divided among
# them, and each skips its share of its own examples: with 2 nodes and 4 files of 10 train skips 5 at the start of two files
# each, so that half of the 10 validation examples are trained on and other 5 are never read. take in shards takes other
# examples too, and fewer than n where a shard is short: 12 of 20. Where the files do not divide among the nodes (4 among 3) it
# is right. No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import datasets
from datasets.distributed import split_dataset_by_node


def rows(part):
    return [row["id"] for row in part]


def nodes(part, count):
    return [rows(split_dataset_by_node(part, rank, count)) for rank in range(count)]


def files(shards):
    for start, length in shards:
        yield from ({"id": i} for i in range(start, start + length))


whole = datasets.IterableDataset.from_generator(files, gen_kwargs={"shards": [(0, 10), (10, 10), (20, 10), (30, 10)]})
validation, train = rows(whole.take(10)), rows(whole.skip(10))
found = {}
for count in (2, 3):
    read = sum(nodes(whole.skip(10), count), [])
    found[count] = {"read of validation": sorted(set(read) & set(validation)), "never read": sorted(set(train) - set(read))}
taken = nodes(whole.take(10), 2)
uneven = datasets.IterableDataset.from_generator(files, gen_kwargs={"shards": [(0, 2), (100, 30)]})
counts = len(rows(uneven.take(20))), sum(map(len, nodes(uneven.take(20), 2)))
print("datasets", datasets.__version__, "validation:", validation, "training in so many nodes:", found)
print("validation in two nodes:", taken, "20 taken of files of 2 and 30 by one node and by two:", counts)
right = validation == list(range(10)) and train == list(range(10, 40)) and not any(found[3].values())
wrong = found[2] == {"read of validation": [5, 6, 7, 8, 9], "never read": [10, 11, 12, 13, 14]}
sys.exit(not (right and wrong and sorted(sum(taken, [])) != validation and counts == (20, 12)))
PYTHON
