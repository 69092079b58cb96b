#!/bin/sh
# torchmetrics 1.9.0, torch 2.13.0: R2Score, ExplainedVariance and RelativeSquaredError in float32 where the targets are far from 0 for their
# spread. Expected: those of scikit-learn, as its PearsonCorrCoef is, which updates a mean. Seen: sums of squares are subtracted from each other. With
# targets of mean 10,000 and deviation 1, 1000 of them, R2 and the explained variance are 0 for an exact 0.81, and the relative error is
# infinite or nearly so; at a mean of 1000 they are off by 0.004 and 0.01. The error grows with the number of samples and is silent. Targets and
# predictions less the targets' mean serve.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy scikit-learn==1.9.1 torchmetrics==1.9.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import sklearn.metrics
import torch
import torchmetrics

torch.manual_seed(0)
noise = torch.randn(2, 1000)
found = {}
for mean in (0, 1000, 10_000):
    target = noise[0] + mean
    preds = target + 0.45 * noise[1]
    exact = sklearn.metrics.r2_score(target.double(), preds.double()), sklearn.metrics.explained_variance_score(target.double(), preds.double())
    metrics = torchmetrics.R2Score(), torchmetrics.ExplainedVariance(), torchmetrics.RelativeSquaredError(), torchmetrics.PearsonCorrCoef()
    values = [round(float(metric(preds, target)), 4) for metric in metrics]
    found[mean] = values, [round(float(x), 4) for x in (*exact, 1 - exact[0])]
print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__)
print("mean: R2, explained variance, relative squared error, correlation; the first three by scikit-learn in float64")
print(found)
near, far = found[0], found[10_000]
right = all(abs(a - b) < 1e-3 for a, b in zip(near[0][:3], near[1])) and abs(near[0][3] - far[0][3]) < 5e-3
sys.exit(not (right and abs(far[0][0] - far[1][0]) > 0.05 and far[0][1] < 0.1 < 0.7 < far[1][1]))
PYTHON
