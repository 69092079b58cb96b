#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): get_scheduler of "polynomial" (lr_end=1e-6) and "cosine_with_min_lr"
# (min_lr=1e-6) for AdamW with a rate by group, 2e-5 and 2e-4, as for layer-wise decay or a new head. Expected: every
# group ends at 1e-6, "the end LR", as with eta_min of PyTorch's CosineAnnealingLR. Seen: 2e-8 and 2e-7. The number is
# divided by the optimizer's default rate, 1e-3 where none was given, and the ratio is each group's end. No warning.
# With one rate for all, given as lr=, it is right.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
import transformers


def last_rates(make, **options):
    rates = options.pop("rates")
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    optimizer = torch.optim.AdamW(groups, **options)
    scheduler = make(optimizer)
    for _ in range(20):
        optimizer.step()
        scheduler.step()
    return [float(f"{group['lr']:.4g}") for group in optimizer.param_groups]


def of_transformers(name, end):
    return lambda optimizer: transformers.get_scheduler(name, optimizer, 0, 20, scheduler_specific_kwargs={end: 1e-6})


makers = {
    "polynomial": of_transformers("polynomial", "lr_end"),
    "cosine_with_min_lr": of_transformers("cosine_with_min_lr", "min_lr"),
    "torch CosineAnnealingLR": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, 20, eta_min=1e-6
    ),
}
found = {
    name: (last_rates(make, rates=(2e-5, 2e-4)), last_rates(make, rates=(2e-5,), lr=2e-5))
    for name, make in makers.items()
}
print("transformers", transformers.__version__, "last rates of two groups, of one with lr= its rate:", found)
right = found.pop("torch CosineAnnealingLR")
sys.exit(not (right == ([1e-6, 1e-6], [1e-6]) and all(rates == ([2e-8, 2e-7], [1e-6]) for rates in found.values())))
PYTHON
