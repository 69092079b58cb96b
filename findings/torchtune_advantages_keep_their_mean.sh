#!/bin/sh
# torchtune 0.6.1, torchao 0.16.0, torch 2.13.0 (CPU): torchtune.rlhf.whiten, "taken from" TRL, and estimate_advantages
# of PPO, which says that it normalizes advantages. Expected: with shift_mean=True, the default, values of mean 0 and
# deviation 1, as in TRL and in OpenAI's lm-human-preferences, where shift_mean=False keeps the mean. Seen: the option
# is the other way round: by default the mean is subtracted for the deviation and added again. Advantages of PPO have
# deviation 1 and the mean they had: where texts are better than expected on the whole, tokens worse than the mean are
# made more likely too. Nothing of estimate_advantages chooses otherwise. No error, no warning.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 torchtune==0.6.1 torchao==0.16.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from torchtune.rlhf import estimate_advantages, whiten

torch.manual_seed(0)
x = 3 * torch.randn(16, 32) + 5
found = {shift: whiten(x, shift_mean=shift) for shift in (True, False)}
default = whiten(x)
for shift, values in found.items():
    print(f"whiten(shift_mean={shift}) of mean {x.mean():.2f}: mean {values.mean():.2f}, deviation {values.std():.2f}")
# A reward of 1 to 2 for the last token, and a value function that knows of none of it.
rewards = torch.zeros(16, 32)
rewards[:, -1] = 1 + torch.rand(16)
advantages, returns = estimate_advantages(torch.zeros(16, 32), rewards, 1.0, 0.95)
plain = returns
print(f"advantages before: mean {plain.mean():.2f}, deviation {plain.std():.2f}; after: mean {advantages.mean():.2f}, "
      f"deviation {advantages.std():.2f}, below 0: {int((advantages < 0).sum())} of {advantages.numel()}")
normal = (plain - plain.mean()) / plain.std()
print(f"of mean 0 and deviation 1, {int((normal < 0).sum())} are below 0")
print("torchtune", importlib.metadata.version("torchtune"))
kept = torch.allclose(advantages, normal + plain.mean(), atol=1e-4)
sys.exit(not (torch.equal(default, found[True]) and abs(float(found[True].mean() - x.mean())) < 1e-3
              and abs(float(found[False].mean())) < 1e-3 and abs(float(found[True].std()) - 1) < 1e-3 and kept
              and float(advantages.mean()) > 0.1))
PYTHON
