#!/bin/sh
# timm 0.5.4 (torch 2.13.0), whose ConvNeXt is copied into the code of other models (FAN, TAPADL): its LayerNorm2d computes another
# function where the map lies channels last, which it does after the first norm of the model in every layer.
# Expected: the same numbers in any memory format. Seen: channels last the variance is the unbiased one (torch.var_mean's default), and the
# output smaller by sqrt(1 - 1 / channels) but for epsilon: 0.9354 of it with 8 channels. With conv_mlp=True all norms but the stem's are
# so. Who computes FAN's hybrid models elsewhere needs the unbiased variance in their first stages.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchvision==0.28.0 timm==0.5.4 numpy
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch

# Where torchvision's compiled operators are built for another PyTorch: timm needs none of them.
library = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, operator):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm
from timm.models.convnext import ConvNeXt, LayerNorm2d

torch.manual_seed(0)
x = torch.randn(2, 8, 5, 5)
norm = LayerNorm2d(8).eval()
with torch.no_grad():
    ratio = norm(x.contiguous(memory_format=torch.channels_last)) / norm(x)
    laid_out = []
    model = ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), conv_mlp=True).eval()
    for part in model.modules():
        if isinstance(part, LayerNorm2d):
            part.register_forward_hook(lambda part, x, y: laid_out.append(x[0].is_contiguous()))
    model(torch.randn(1, 3, 64, 64))
print("timm", timm.__version__, "torch", torch.__version__, ratio.min(), ratio.max(), laid_out)
smaller = bool(torch.allclose(ratio, torch.tensor((1 - 1 / 8) ** 0.5), atol=1e-3))
sys.exit(not (smaller and laid_out[0] and not any(laid_out[1:-1])))
PYTHON
