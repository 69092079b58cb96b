#!/bin/sh
# timm 1.0.31, torch 2.13.0: reset_classifier(classes, "avg") of a vision transformer made with the class token as its output.
# Expected: the model that create_model(..., global_pool="avg") makes. Seen: another function and other names. Made so, the mean of the tokens
# is normalized (fc_norm); changed so, each token is normalized (norm) and then the mean taken. With the same weights the
# outputs of a new model are 74 % apart, and the other one refuses a file of what was fine-tuned: fc_norm.weight is missing.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchvision==0.28.0 timm==1.0.31 numpy
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

torch.manual_seed(0)
sizes = {"depth": 1, "img_size": 64, "num_classes": 5}
changed = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
changed.reset_classifier(5, "avg")
made = timm.create_model("vit_tiny_patch16_224", global_pool="avg", **sizes).eval()
weights = changed.state_dict()
missing, unexpected = made.load_state_dict(weights, strict=False)
made.load_state_dict({name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: w for name, w in weights.items()})
for model in (changed, made):
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
x = torch.randn(2, 3, 64, 64)
with torch.no_grad():
    apart = float((changed(x) - made(x)).abs().max() / made(x).abs().max())
print("timm", timm.__version__, "missing", missing, "unexpected", unexpected, "apart", apart)
names = [["fc_norm.weight", "fc_norm.bias"], ["norm.weight", "norm.bias"]]
sys.exit(not ([missing, unexpected] == names and apart > 0.1))
PYTHON
