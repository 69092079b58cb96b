#!/bin/sh
# grain 0.2.18: DataLoader with IndexSampler(shard_options=ShardOptions(i, count)), whose drop_remainder is False by default. Expected: an epoch over all
# shards has every record once, and two have each twice, as the first shards are given the records that are left over. Seen: they are given them, but each
# shard ends after (records * epochs) // count steps, so that the last record of the longer shards is never read in one epoch, with a warning for
# drop_remainder=True alone: one record of 7 in two shards, 7 of 15 in 8. With several epochs longer shards read less of their records and shorter ones begin
# an epoch more. Evaluated in shards, a set of 10,000 in 64 lacks 16 of its examples. MapDataset.range(n)[i::count] has them all.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet grain==0.2.18
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import collections
import importlib.metadata
import sys

import grain.python as grain


def read(records, count, epochs=1, **options):
    """How often each record is read by all shards together, as a table of how many records are read how often."""
    times = collections.Counter({record: 0 for record in range(records)})
    for shard in range(count):
        part = grain.ShardOptions(shard, count, **options)
        sampler = grain.IndexSampler(num_records=records, shard_options=part, shuffle=True, num_epochs=epochs, seed=0)
        times.update(int(x) for x in grain.DataLoader(data_source=grain.RangeDataSource(0, records, 1), sampler=sampler, worker_count=0))
    return dict(sorted(collections.Counter(times.values()).items()))


found = {sizes: read(*sizes) for sizes in ((8, 2, 1), (7, 2, 1), (15, 8, 1), (10_000, 64, 1), (7, 2, 4))}
sliced = collections.Counter(int(x) for i in range(8) for x in grain.MapDataset.range(15)[i::8])
print("grain", importlib.metadata.version("grain"), "records by how often they are read, for (records, shards, epochs):", found)
print("MapDataset, sliced:", dict(collections.Counter(sliced.values())), "drop_remainder=True:", read(7, 2, 1, drop_remainder=True))
right = found[8, 2, 1] == {1: 8} and set(sliced.values()) == {1} and len(sliced) == 15
lost = {sizes: found[sizes].get(0, 0) for sizes in ((7, 2, 1), (15, 8, 1), (10_000, 64, 1))}
sys.exit(not (right and list(lost.values()) == [1, 7, 16] and set(found[7, 2, 4]) != {4}))
PYTHON
