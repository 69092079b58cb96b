#!/bin/sh
# ponder-transformer 0.0.8, torch 2.13.0 (CPU): PonderTransformer (PonderNet, arXiv:2107.05407). Expected: a loss that weighs each step's cross entropy by the
# probability to halt there, so that halting learns which steps answer well; in evaluation a step halts with the probability that its layer gives, so that
# with 0.5 at each step half of the rows halt at the first, a quarter at the second; and mask hides padding. Seen: the cross entropy is averaged over all
# steps first and multiplied by the mean probability, so that all steps count alike and halting learns nothing from the answers. In evaluation a row that has
# not halted halts with the probability of having halted just there from the start, 0.25 at the second step: an eighth does, and rows go on for too long. mask
# has no effect.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy ponder-transformer==0.0.8
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from ponder_transformer import PonderTransformer

torch.manual_seed(0)
model = PonderTransformer(num_tokens=20, dim=32, max_seq_len=8, heads=2, dim_head=8, causal=True, ponder_kl_div_loss_weight=0)
text, labels = torch.randint(1, 20, (2, 4, 8)).unbind(0)
halts, logits = [], []
model.block.to_halt_logits.register_forward_hook(lambda _, inputs, output: halts.append(output))
model.to_logits.register_forward_hook(lambda _, inputs, output: logits.append(output))
with torch.no_grad():
    loss = model.train()(text, labels=labels)
    chance = torch.stack(halts, 1).sigmoid()  # (batch, step, token)
    steps = chance.shape[1]
    halting = chance * torch.cat((torch.ones_like(chance[:, :1]), (1 - chance[:, :-1]).cumprod(1)), 1)
    entropy = torch.nn.functional.cross_entropy(logits[0].permute(0, 3, 1, 2), labels[:, None].expand(-1, steps, -1), reduction="none")
    found = {"loss": float(loss), "weighed by step": float((entropy * halting).mean()), "not weighed": float(entropy.mean() * halting.mean())}
    for parameter in model.block.to_halt_logits.parameters():
        parameter.zero_()  # a chance of 0.5 at each step
    model.eval()
    _, where = model(torch.randint(1, 20, (8192, 2)))
    found["share of rows that halt at steps 1, 2, 3"] = [round(float((where == step).float().mean()), 3) for step in range(3)]
    torch.manual_seed(1)
    first, _ = model(text)
    torch.manual_seed(1)
    found["effect of a mask"] = float((model(text, mask=torch.arange(8).expand(4, 8) < 4)[0] - first).abs().max())
print("ponder-transformer", importlib.metadata.version("ponder-transformer"), found)
shares = found["share of rows that halt at steps 1, 2, 3"]
loss_wrong = abs(found["loss"] - found["not weighed"]) < 1e-5 < 1e-4 < abs(found["loss"] - found["weighed by step"])
sys.exit(not (loss_wrong and abs(shares[0] - 0.5) < 0.03 and abs(shares[1] - 0.125) < 0.02 and found["effect of a mask"] == 0))
PYTHON
