#!/bin/sh
# accelerate 1.15.0, torch 2.13.0 (CPU): schedules of as many steps as there are batches, with 4 batches an update,
# prepared and stepped after every batch. Expected: with GradientAccumulationPlugin(adjust_scheduler=True), the default,
# which is "to account for the number of steps being accumulated" where "the used scheduler was not adjusted", they come
# to their end with the data. Seen: they step once an update and end after a quarter of their steps, a cosine at 86 % of
# its first rate, OneCycleLR near its peak; rates are those of adjust_scheduler=False to the last bit. What is adjusted
# is a count that neither rate depends on. Schedules have to have as many steps as there are updates. No error, no
# warning.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy accelerate==1.15.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import accelerate
import torch
from accelerate.utils import GradientAccumulationPlugin
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

batches, steps = 160, 4
makers = {
    "CosineAnnealingLR": lambda optimizer, total: CosineAnnealingLR(optimizer, total),
    "OneCycleLR": lambda optimizer, total: OneCycleLR(optimizer, 1.0, total_steps=total, cycle_momentum=False),
}


def rates(make, total, adjust):
    """The rate of each update."""
    data = torch.utils.data.DataLoader(torch.randn(batches, 3), batch_size=1)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    plugin = GradientAccumulationPlugin(num_steps=steps, adjust_scheduler=adjust)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_plugin=plugin)
    model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, data, make(optimizer, total))
    found = []
    for x in data:
        with accelerator.accumulate(model):
            accelerator.backward(model(x).square().mean())
            if accelerator.sync_gradients:
                found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return found


right = []
for name, make in makers.items():
    found = {
        "of batches, adjusted": rates(make, batches, True),
        "of batches, not adjusted": rates(make, batches, False),
        "of updates, not adjusted": rates(make, batches // steps, False),
    }
    for kind, values in found.items():
        print(name, kind, [round(rate, 4) for rate in [*values[::4], values[-1]]])
    adjusted, other, want = found.values()
    right.append(len(want) == batches // steps and adjusted == other and adjusted[-1] > 0.8 and want[-1] < 0.01)
print("accelerate", accelerate.__version__)
sys.exit(not all(right))
PYTHON
