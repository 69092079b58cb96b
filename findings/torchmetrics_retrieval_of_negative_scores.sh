#!/bin/sh
# torchmetrics 1.9.0, torch 2.13.0: RetrievalMRR, RetrievalMAP, RetrievalPrecision and RetrievalRecall of scores that are not above 0: logits,
# log-likelihoods, inner products, cosines. Documented as "a float tensor". Expected: metrics of a ranking, which adding a constant to all scores does not
# change. Seen: what scores 0 or less counts as not relevant, whatever its label. A relevant document at the first place of a query, with all scores below
# 0, has a reciprocal rank of 0, and with 1 added to all scores one of 1. RetrievalNormalizedDCG, RetrievalAUROC and RetrievalRPrecision
# are functions of the ranking. No warning. scores.sigmoid() or scores - scores.min() + 1 serves.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy torchmetrics==1.9.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
import torchmetrics
from torchmetrics import retrieval

scores = torch.tensor([-0.1, -0.2, -0.3, -0.4, -0.5, -0.6])
relevant = torch.tensor([1, 0, 1, 0, 0, 0])
query = torch.zeros(6, dtype=torch.long)
cut, whole = ("MRR", "MAP", "Precision", "Recall"), ("NormalizedDCG", "AUROC", "RPrecision")
found = {
    name: [round(float(getattr(retrieval, "Retrieval" + name)()(scores + more, relevant, indexes=query)), 4) for more in (0, 1)]
    for name in cut + whole
}
print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__, "scores below 0, the same plus 1:", found)
as_seen = all(found[name][0] == 0 < found[name][1] for name in cut) and all(found[name][0] == found[name][1] for name in whole)
sys.exit(not (as_seen and found["MRR"][1] == 1))
PYTHON
