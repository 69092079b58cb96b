#!/bin/sh
# torch 2.13.0 on a CPU: the gradients of LayerNorm's weight and bias where its input is bfloat16, with parameters in bfloat16 or, under autocast, in float32.
# Expected: sums over all rows in float32, rounded once, as those of Linear and GroupNorm are. Seen: each thread adds its rows in bfloat16, where 256 + 1 is
# 256: the gradient of ones is 256 times the number of threads, for 1000 tokens as for 20,000. Of 4096 random slopes of mean 1 three quarters are lost with
# one thread; of mean 0, the bias' gradient is off by 7 % of its norm, where rounding makes 0.2 %. Those with respect to the input are right. Other numbers of
# threads give other gradients. Inputs cast to float32 before the norm serve.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch

torch.manual_seed(0)
kinds = {"LayerNorm": torch.nn.LayerNorm, "GroupNorm": lambda size: torch.nn.GroupNorm(1, size), "Linear": lambda size: torch.nn.Linear(size, size)}


def bias_gradient(kind, slopes, dtype=torch.bfloat16, threads=1):
    torch.set_num_threads(threads)
    layer = kinds[kind](slopes.shape[-1]).to(dtype)
    x = torch.randn(slopes.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.float32):
        (layer(x).float() * slopes).sum().backward()
    return layer.bias.grad.float()


found = {}
for kind in kinds:
    for rows in (200, 1000, 20_000):
        found[kind, rows] = float(bias_gradient(kind, torch.ones(rows, 8))[0])
    for mean in (0, 1):
        slopes = mean + torch.randn(4096, 64)
        found[kind, "error", mean] = round(float((bias_gradient(kind, slopes) - slopes.sum(0)).norm() / slopes.sum(0).norm()), 4)
found["LayerNorm", "float32 parameters", 20_000] = float(bias_gradient("LayerNorm", torch.ones(20_000, 8), torch.float32)[0])
found["LayerNorm", "two threads", 20_000] = float(bias_gradient("LayerNorm", torch.ones(20_000, 8), threads=2)[0])
print("torch", torch.__version__, "gradients of a bias by rows, and errors of random ones by the mean of the slopes:", found)
narrow = [found["LayerNorm", key] for key in (1000, 20_000)] + [found["LayerNorm", "float32 parameters", 20_000]]
wrong = narrow == [256, 256, 256] and found["LayerNorm", "error", 1] > 0.3 and found["LayerNorm", "error", 0] > 0.02
right = all(abs(found[kind, rows] / rows - 1) < 0.01 and found[kind, "error", 0] < 0.01 for kind in ("GroupNorm", "Linear") for rows in (1000, 20_000))
sys.exit(not (wrong and right and found["LayerNorm", 200] == 200))
PYTHON
