#!/bin/sh
# equinox 0.13.8, jax 0.10.2, torch 2.13.0 (CPU): equinox.nn.AdaptiveAvgPool2d and AdaptiveMaxPool1d to a size that does
# not divide the map's, as when a network of PyTorch is carried over: VGG's and AlexNet's pools to 7 and 6, pyramid
# pooling to 1, 2, 3 and 6. Expected: windows from floor(i n / m) to ceil((i + 1) n / m), spread evenly and overlapping,
# as torch's layers of the same names have them. Seen: windows side by side, of which the first ones are one longer: 8
# to 5 are 2, 2, 2, 1 and 1 wide, where torch's are 2, 3, 2, 3 and 2. The mirror image of a map is pooled to something
# else than the mirror image of its pool. Maps of 14 pooled to 6 differ by a third of their deviation. Sizes that divide
# agree. No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later; downloads PyTorch into a
# temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet equinox==0.13.8 jax==0.10.2 jaxlib==0.10.2 torch==2.13.0 numpy
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch

ramp = jnp.arange(8.0)[None]
pool = eqx.nn.AdaptiveAvgPool1d(5)
found = {
    "ramp of 8 to 5": pool(ramp)[0].tolist(),
    "torch": torch.nn.AdaptiveAvgPool1d(5)(torch.tensor(np.asarray(ramp)))[0].tolist(),
    "from its mirror image": float(jnp.abs(pool(ramp[:, ::-1])[:, ::-1] - pool(ramp)).max()),
}
for size, target in ((14, 7), (12, 6), (14, 6), (13, 7), (10, 3)):
    x = jax.random.normal(jax.random.key(0), (16, size, size))
    other = torch.tensor(np.asarray(x))
    gaps = []
    for name in ("AdaptiveAvgPool2d", "AdaptiveMaxPool2d"):
        y, z = np.asarray(getattr(eqx.nn, name)(target)(x)), getattr(torch.nn, name)(target)(other).numpy()
        gaps.append(round(float(np.sqrt(np.mean((y - z) ** 2)) / z.std()), 6))
    found[size, target] = gaps
print("equinox", importlib.metadata.version("equinox"), "jax", jax.__version__, "torch", torch.__version__)
print("gap / deviation (mean, max) by sizes:", found)
even = max(found[14, 7] + found[12, 6]) < 1e-5
uneven = min(found[14, 6] + found[13, 7] + found[10, 3]) > 0.1
mirror = found["torch"] == [0.5, 2, 3.5, 5, 6.5] and found["ramp of 8 to 5"] == [0.5, 2.5, 4.5, 6, 7]
sys.exit(not (even and uneven and mirror and found["from its mirror image"] > 1))
PYTHON
