#!/bin/sh
# timm 1.0.31, torch 2.13.0 (CPU): ModelEmaV3 and ModelEmaV2 of a model with tied weights (an embedding that is its
# output layer). Expected: every parameter becomes decay * average + (1 - decay) * parameter once an update, as in
# AveragedModel with get_ema_multi_avg_fn of PyTorch. Seen: the tied one is in the state dict under two names and is
# updated once for each: its average forgets with decay ** 2, and with n names decay ** n, while the others keep pace
# with decay. ModelEmaV3(exclude_buffers=True), which goes through the parameters, is right. At decay=0.9999 half of it
# is of the last 3,500 updates in place of 6,900.
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
from timm.utils import ModelEmaV2, ModelEmaV3
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def model():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 5, bias=False)
    ).double()
    layers[2].weight = layers[0].weight
    return layers


makers = {
    "ModelEmaV2": lambda m: ModelEmaV2(m, decay=0.9),
    "ModelEmaV3": lambda m: ModelEmaV3(m, decay=0.9),
    "ModelEmaV3, buffers apart": lambda m: ModelEmaV3(m, decay=0.9, exclude_buffers=True),
    "ModelEmaV3 of single arrays": lambda m: ModelEmaV3(m, decay=0.9, foreach=False),
    "torch AveragedModel": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
}
found = {}
for name, make in makers.items():
    trained = model()
    average = make(trained)
    update = average.update if hasattr(average, "update") else average.update_parameters
    if name.startswith("torch"):
        update(trained)  # its first is a copy
    start = [p.detach().clone() for p in trained.parameters()]
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 1.0
    update(trained)
    found[name] = [round(float((a - p).mean()), 9) for a, p in zip(average.module.parameters(), start)]
print(
    "timm",
    timm.__version__,
    "torch",
    torch.__version__,
    "move towards a step of 1, decay 0.9, (tied, weight, bias):",
    found,
)
right, apart = found.pop("torch AveragedModel"), found.pop("ModelEmaV3, buffers apart")
sys.exit(not (right == apart == [0.1] * 3 and all(moved == [0.19, 0.1, 0.1] for moved in found.values())))
PYTHON
