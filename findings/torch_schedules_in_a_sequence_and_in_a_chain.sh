#!/bin/sh
# torch 2.13.0 (CPU): torch.optim.lr_scheduler.SequentialLR and ChainedScheduler with other schedules in them. Expected:
# of a sequence, that each part begins at the optimizer's rate when its turn comes, as ExponentialLR and seven others do;
# of a chain, that the rate is the product of its parts. Seen: after a warmup with ConstantLR(0.1) for 5 epochs,
# MultiplicativeLR, which has the same rates as ExponentialLR by itself, goes on from a tenth of the rate, and all later
# rates are a tenth of what they should be, and less by one decay; after LinearLR from 0.1 they are 0.82 of it. In a
# chain, a warmup before a SequentialLR is undone when the sequence is made, which sets the rate back, and multiplies
# all the same when it goes on: rates rise to 10 times the optimizer's, and stay there until the sequence's next part. A
# warmup before CosineAnnealingWarmRestarts or LambdaLR has no effect in a chain, as they set rates and multiply none.
# The documentation calls OneCycleLR alone not chainable. No error, no warning, and get_last_lr() agrees.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import math
import sys

import torch
from torch.optim import lr_scheduler

epochs = 12


def rates(make):
    """The rate in each epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rows = make(optimizer), []
    for _ in range(epochs):
        rows.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return torch.tensor(rows, dtype=torch.float64)


def constant(optimizer):
    return lr_scheduler.ConstantLR(optimizer, 0.1, total_iters=5)


def linear(optimizer):
    return lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)


def multiplicative(optimizer):
    return lr_scheduler.MultiplicativeLR(optimizer, lambda _: 0.9)


def exponential(optimizer):
    return lr_scheduler.ExponentialLR(optimizer, 0.9)


def sequence(optimizer):
    return lr_scheduler.SequentialLR(optimizer, [lr_scheduler.ConstantLR(optimizer, 1.0, 8), exponential(optimizer)], [8])


def restarts(optimizer):
    return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 4)


def by_lambda(optimizer):
    return lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)


def then(first, second):
    return rates(lambda optimizer: lr_scheduler.SequentialLR(optimizer, [first(optimizer), second(optimizer)], [5]))


def chain(first, second):
    return rates(lambda optimizer: lr_scheduler.ChainedScheduler([first(optimizer), second(optimizer)], optimizer=optimizer))


close = torch.allclose
right = close(rates(multiplicative), rates(exponential))
print("torch", torch.__version__, "rates in", epochs, "epochs of an optimizer with a rate of 1:")
for first, share in (constant, 0.1), (linear, 0.82):
    for second in exponential, multiplicative:
        seen, expected = then(first, second)[5:], rates(second)[: epochs - 5]
        print("sequence", first.__name__, second.__name__, seen.numpy().round(3).tolist(), float(seen[0]))
        # The sequence decays once at its turn as well.
        right &= close(seen, expected if second is exponential else expected * share * 0.9)
for first in constant, linear:
    for second in exponential, sequence, restarts, by_lambda:
        seen, product = chain(first, second), rates(first) * rates(second)
        print("chain", first.__name__, second.__name__, seen.numpy().round(3).tolist(), "product", product[:6].numpy().round(3))
        if second is exponential:
            right &= close(seen, product)
        elif second is sequence:
            right &= math.isclose(float(seen[6] / product[6]), 10, rel_tol=1e-6)
        else:
            right &= close(seen, rates(second)) and not close(seen, product)
sys.exit(not right)
PYTHON
