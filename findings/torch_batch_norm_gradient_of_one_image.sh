#!/bin/sh
# torch 2.13.0 on a CPU: the gradient of BatchNorm2d in eval mode is wrong, and silently so, where its output becomes tokens for a
# LayerNorm, x.flatten(2).transpose(1, 2), and the batch is one image: the stem of several image models.
# Expected: the slope along a direction that finite differences in float64 give, as with two images. Seen: another number, of another
# sign even, in float32 and float64. permute(0, 2, 3, 1) in place of flatten and transpose gives the right one. Who records gradients of
# such a model as a reference must do it with two images or more.
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


def error(images, tokens, features=16):
    """Relative error of the slope along a random direction."""
    torch.manual_seed(0)
    batch_norm = torch.nn.BatchNorm2d(features).double().eval()
    batch_norm.running_var.uniform_(0.5, 2)
    layer_norm = torch.nn.LayerNorm(features).double()
    x, way = torch.randn(2, images, features, 15, 19, dtype=torch.float64)

    def function(x):
        return layer_norm(tokens(batch_norm(x)))

    weight = torch.randn_like(function(x))
    x.requires_grad_()
    (function(x) * weight).sum().backward()
    slope = float((x.grad * way).sum())
    with torch.no_grad():
        step = 1e-6
        expected = float(((function(x + step * way) - function(x - step * way)) * weight).sum() / (2 * step))
    return abs(slope - expected) / abs(expected)


def flattened(x):
    return x.flatten(2).transpose(1, 2)


def permuted(x):
    return x.permute(0, 2, 3, 1)


found = {
    "one image, flattened": error(1, flattened),
    "two images, flattened": error(2, flattened),
    "one image, permuted": error(1, permuted),
}
print("torch", torch.__version__, found)
wrong, *right = found.values()
sys.exit(not (wrong > 0.01 and max(right) < 1e-5))
PYTHON
