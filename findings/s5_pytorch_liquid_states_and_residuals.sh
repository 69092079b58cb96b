#!/bin/sh
# s5-pytorch 0.2.1, torch 2.13.0 (CPU): S5(liquid=True) and S5Block. Expected: a text in two parts with the state handed
# on is the text at once, as without liquid and as its step by step function has it; with bidir=True both directions are
# of one kind; and the block is the "standard" one with pre-normalization that its code speaks of, x + f(norm(x)). Seen:
# the state of the first part enters the second without the input's term of the decay; of a bidirectional liquid layer
# only one direction is liquid: reversing the text and exchanging the two halves of C gives other numbers. And the block
# adds norm(x) in place of x, twice, so that no residual stream is left: 100 x + 5 comes out as x does, at any depth.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 scipy==1.17.1 s5-pytorch==0.2.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from s5 import S5, S5Block

torch.set_grad_enabled(False)
torch.manual_seed(0)
x = torch.randn(2, 12, 6)


def make(**options):
    """A layer with steps of 0.5 in place of 0.001 to 0.1, so that inputs count."""
    torch.manual_seed(1)
    layer = S5(6, 8, dt_min=0.5, dt_max=0.5001, **options)
    return layer


def apart(a, b):
    return float((a - b).abs().max() / b.std())


found = {}
for liquid in False, True:
    layer = make(liquid=liquid)
    state = torch.zeros(2, 8, dtype=torch.complex64)
    whole, _ = layer(x, state=state, return_state=True)
    first, middle = layer(x[:, :6], state=state, return_state=True)
    second, _ = layer(x[:, 6:], state=middle, return_state=True)
    steps, now = [], state
    for t in range(12):
        results = [layer.seq.forward_rnn(x[i, t], now[i]) for i in range(2)]
        steps.append(torch.stack([y for y, _ in results]))
        now = torch.stack([h for _, h in results])
    steps = torch.stack(steps, 1)
    both = make(liquid=liquid, bidir=True)
    one = both(x)
    both.seq.C.copy_(both.seq.C.roll(8, 1))
    other = both(x.flip(1)).flip(1)
    found[liquid] = apart(whole, steps), apart(torch.cat([first, second], 1), steps), apart(other, one)
    print(f"liquid={liquid}: at once {found[liquid][0]:.1e}, in two parts {found[liquid][1]:.1e} deviations from "
          f"step by step; the other way round with bidir=True {found[liquid][2]:.1e}")
torch.manual_seed(1)
block = S5Block(6, 8, False).eval()
same = apart(block(100 * x + 5), block(x))
print(f"S5Block of 100 x + 5: {same:.1e} deviations from that of x")
print("s5-pytorch", importlib.metadata.version("s5-pytorch"))
sys.exit(not (max(found[False]) < 1e-4 and found[True][0] < 1e-4 and min(found[True][1:]) > 1e-2 and same < 1e-3))
PYTHON
