#!/bin/sh
# timm 1.0.31, torch 2.13.0 (CPU): MultiStepLRScheduler(decay_t=[30, 60]), stepped with the number of the epoch that comes next, as timm's train.py does.
# Expected: the rate falls for epochs 30 and 60, as with StepLRScheduler(decay_t=30) and with MultiStepLR(milestones=[30, 60]) of PyTorch. Seen: for epochs 29
# and 59. The other schedulers of timm agree with PyTorch's.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchvision==0.28.0 timm==1.0.31 numpy
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import timm
import torch
from timm.scheduler import MultiStepLRScheduler, StepLRScheduler


def falls(make, begin):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = make(optimizer), []
    for epoch in range(90):
        rates.append(optimizer.param_groups[0]["lr"])  # of the steps of this epoch
        scheduler.step(epoch + 1) if begin else scheduler.step()
    return [epoch for epoch in range(1, 90) if rates[epoch] != rates[epoch - 1]]


found = {
    "torch MultiStepLR": falls(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [30, 60], gamma=0.1), False),
    "timm StepLRScheduler": falls(lambda o: StepLRScheduler(o, decay_t=30, decay_rate=0.1), True),
    "timm MultiStepLRScheduler": falls(lambda o: MultiStepLRScheduler(o, decay_t=[30, 60], decay_rate=0.1), True),
}
print("timm", timm.__version__, "torch", torch.__version__, "epochs at which the rate falls:", found)
sys.exit(found != {"torch MultiStepLR": [30, 60], "timm StepLRScheduler": [30, 60], "timm MultiStepLRScheduler": [29, 59]})
PYTHON
