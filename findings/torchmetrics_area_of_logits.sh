#!/bin/sh
# torchmetrics 1.9.0, torch 2.13.0: BinaryAUROC and BinaryAveragePrecision of logits, which their documentation allows.
# Expected: what scikit-learn gives; the area depends on the order of the scores alone. Seen: logits go through a sigmoid in float32, which is 1 for
# all above 17: logits of 20, 30, 40, 50 are ties, and a perfect order has an area of 0.5. Whether numbers are logits is decided for each
# batch: one whose logits all lie in [0, 1] is taken for probabilities, so that 0.2, 0.3, 0.4 are negatives alone and positives beside
# a 2.0: BinaryAccuracy is 0 and 1. Ranks divided by their number serve for areas.
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
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryAveragePrecision

logits, labels = torch.tensor([20.0, 30.0, 40.0, 50.0]), torch.tensor([0, 0, 1, 1])
peers = sklearn.metrics.roc_auc_score(labels, logits), sklearn.metrics.average_precision_score(labels, logits)
areas = {
    str(x.dtype): [round(float(metric()(x, labels)), 4) for metric in (BinaryAUROC, BinaryAveragePrecision)]
    for x in (logits, (logits - 17).double())
}
small, ones = torch.tensor([0.2, 0.3, 0.4]), torch.ones(4, dtype=torch.long)
accuracies = float(BinaryAccuracy()(small, ones[:3])), float(BinaryAccuracy()(torch.cat([small, torch.tensor([2.0])]), ones))
print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__, "areas", areas, "scikit-learn", peers)
print("accuracy of logits 0.2, 0.3, 0.4, alone and beside 2.0:", accuracies)
sys.exit(not (peers == (1, 1) and areas["torch.float32"] == [0.5, 0.5] and areas["torch.float64"] == [1, 1] and accuracies == (0, 1)))
PYTHON
