#!/bin/sh
# iTransformer 0.8.1, torch 2.13.0 (CPU). Expected of its layers, as in the paper (arXiv:2310.06625): x + attention(x), then x + feed_forward(x), so that
# branches whose outputs are 0 leave x; and with use_reversible_instance_norm=True forecasts that follow the series (arXiv RevIN): a constant added to a
# series is added to its forecast. Seen: the hyper-connections add the residual and the model adds it again: branches of 0 make x 4 times larger in each
# layer, 256 times in 4 layers with num_residual_streams=1, and 4 times that with 4 streams, and nothing normalizes it before the head. The reversed
# normalization is applied to the features before the head, not to the forecasts: of 3 added to a series another number arrives in the forecast.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy packaging iTransformer==0.8.1 hyper-connections==0.4.11
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from iTransformer import iTransformer

sizes = {"num_variates": 5, "lookback_len": 24, "dim": 32, "pred_length": 6, "dim_head": 8, "heads": 2, "flash_attn": False}
x = torch.randn(2, 24, 5, generator=torch.Generator().manual_seed(0))
found = {}


def forecast(model, x):
    y = model(x)
    return y[6] if isinstance(y, dict) else y


with torch.no_grad():
    for streams in (1, 4):
        for depth in (1, 4):
            torch.manual_seed(0)
            model = iTransformer(depth=depth, num_residual_streams=streams, num_mem_tokens=0, **sizes).eval()
            for name, parameter in model.named_parameters():
                if name.startswith("layers") and ("to_out" in name or "branch.4." in name):  # the last linear map of each branch
                    parameter.zero_()
            seen = []
            model.pred_heads[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            model(x)
            found["growth", streams, depth] = round(float((seen[0] / model.mlp_in(x.transpose(1, 2))).median()), 2)
        torch.manual_seed(0)
        model = iTransformer(depth=2, num_residual_streams=streams, use_reversible_instance_norm=True, **sizes).eval()
        moved = (forecast(model, x + 3) - forecast(model, x)).mean((0, 2))
        found["3 added arrives as", streams] = sorted({round(float(m), 2) for m in moved})
print("iTransformer", importlib.metadata.version("iTransformer"), "by streams and layers:", found)
grown = [found["growth", *key] for key in ((1, 1), (1, 4), (4, 1), (4, 4))] == [4, 256, 16, 1024]
sys.exit(not (grown and all(max(abs(m - 3) for m in found["3 added arrives as", s]) > 1 for s in (1, 4))))
PYTHON
