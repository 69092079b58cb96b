#!/bin/sh
# timm 1.0.31, torch 2.13.0 (CPU): Lookahead(optimizer, alpha=0.5, k=5), which create_optimizer_v2(model,
# "lookahead_adamw") and the like make. Expected, as in the paper and optax.lookahead: slow weights begin at the weights
# before the first step, and after 5 steps of 0.1 the weights are 0.25. Seen: 0.5. The slow weights are made at the
# first synchronization, of the fast ones, so that it changes nothing, and all later ones pull towards weights that are
# k steps too far along. sync_lookahead() before the first step makes none either, as it leaves out what has no gradient
# yet.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch and JAX into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchvision==0.28.0 timm==1.0.31 numpy jax==0.10.2 optax==0.2.8
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import jax.numpy as jnp
import numpy as np
import optax
import torch

# Where torchvision's compiled operators are built for another PyTorch: timm needs none of them.
library = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, operator):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm
from timm.optim import Lookahead

steps, rate, alpha, k = 20, 0.1, 0.5, 5


def of_timm(synchronized):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = Lookahead(torch.optim.SGD([weight], lr=rate), alpha=alpha, k=k)
    if synchronized:
        optimizer.sync_lookahead()
    weights = []
    for _ in range(steps):
        weight.grad = -torch.ones(1)
        optimizer.step()
        weights.append(float(weight))
    return weights


def of_optax():
    weight = optax.LookaheadParams.init_synced(jnp.zeros(1))
    optimizer = optax.lookahead(optax.sgd(rate), k, alpha)
    state, weights = optimizer.init(weight), []
    for _ in range(steps):
        updates, state = optimizer.update(-jnp.ones(1), state, weight)
        weight = optax.apply_updates(weight, updates)
        weights.append(float(weight.fast[0]))
    return weights


def of_the_paper():
    slow = fast = 0.0
    weights = []
    for step in range(1, steps + 1):
        fast += rate
        if step % k == 0:
            slow += alpha * (fast - slow)
            fast = slow
        weights.append(fast)
    return weights


found = {
    "paper": of_the_paper(),
    "optax": of_optax(),
    "timm": of_timm(False),
    "timm, synchronized before": of_timm(True),
}
print("timm", timm.__version__, "weights after each synchronization:")
print({name: np.round(weights[k - 1 :: k], 4).tolist() for name, weights in found.items()})
apart = {name: np.abs(np.subtract(weights, found["paper"])).max() for name, weights in found.items()}
ahead = np.subtract(found["timm"], found["paper"])[k - 1 :]
late = np.allclose(ahead, rate * k * (1 - alpha), atol=1e-5) and apart["timm, synchronized before"] == apart["timm"]
sys.exit(not (apart["optax"] < 1e-5 and late))
PYTHON
