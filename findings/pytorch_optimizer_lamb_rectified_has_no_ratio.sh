#!/bin/sh
# pytorch-optimizer 4.1.0, torch 2.13.0 (CPU): Lamb(rectify=True), LAMB with the warmup of RAdam. Expected: the step of
# RAdam, with the ratio of the norm of the weights (at most 10) to that of the step, the trust ratio that LAMB
# (arXiv:1904.00962) is: of weights of deviation 0.01, 0.1 and 0.25 each layer moves by the same share of its length, as
# with rectify=False. Seen: the ratio is that of the norm of the weights to the norm of the weights after the step,
# which is 1 but for the step itself: layers move by the same length whatever theirs is, to 1 %, as with adam=True,
# which is there to turn the ratio off. Where weights are longer than 10 the ratio is 10 by their length, the contrary
# of what it should be: the longer they are, the less they move. state["trust_ratio"] shows it. No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pytorch-optimizer==4.1.0 torch==2.13.0 numpy
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from pytorch_optimizer import Lamb

generator = torch.Generator().manual_seed(0)
kernel = torch.randn(40, 30, generator=generator)
gradients = torch.randn(200, 40, 30, generator=generator) + 0.5


def last(deviation, **options):
    """The length of the last of 200 steps, that of the weights before it, and the ratio that the optimizer shows."""
    weights = torch.nn.Parameter(kernel * deviation)
    optimizer = Lamb([weights], lr=1e-4, **options)
    for gradient in gradients:
        before = weights.detach().clone()
        weights.grad = gradient.clone()
        optimizer.step()
    length = float((weights.detach() - before).norm())
    return length, float(before.norm()), float(optimizer.state[weights]["trust_ratio"])


print("pytorch-optimizer", importlib.metadata.version("pytorch-optimizer"), "torch", torch.__version__)
options = {"lamb": {}, "rectified": {"rectify": True}, "rectified, adam": {"rectify": True, "adam": True}}
found = {}
for name, more in options.items():
    for deviation in 0.01, 0.1, 0.25, 1.0, 5.0:
        length, norm, ratio = found[name, deviation] = last(deviation, **more)
        print(f"{name}, deviation {deviation}: step {length:.3g}, by the weights' norm {length / norm:.3g}, ratio {ratio:.4g}")
right = True
for deviation in 0.01, 0.1, 0.25:
    length, norm, ratio = found["lamb", deviation]
    right &= abs(length / norm / 1e-4 - 1) < 0.01
    length, norm, ratio = found["rectified", deviation]
    right &= abs(ratio - 1) < 0.01 and abs(length / found["rectified, adam", deviation][0] - 1) < 0.01
for deviation in 1.0, 5.0:
    length, norm, ratio = found["rectified", deviation]
    right &= abs(ratio * norm / 10 - 1) < 0.01
sys.exit(not right)
PYTHON
