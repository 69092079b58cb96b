#!/bin/sh
# torchmetrics 1.9.0, sacrebleu 2.6.0 (torch 2.13.0): SacreBLEUScore, whose documentation says that it follows the behavior of SacreBLEU, and CHRFScore, which
# names sacrebleu's file as what it follows. Expected: sacrebleu's scores, over 100. Seen: so for long texts; where a corpus, a batch or a sentence
# has no common n-gram of some order, sacrebleu smooths by default and SacreBLEUScore gives 0 (0.124 for a text of 5 words), with
# smooth=True too, which is another smoothing; and of texts too short for some order, sacrebleu's chrF averages the orders that are there,
# CHRFScore all: 0.146 for 0.292 of "abc" and "abx". Scores of short answers, or means over sentences, are not comparable.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy torchmetrics==1.9.0 sacrebleu==2.6.0 regex
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import sacrebleu
import torch
import torchmetrics
from torchmetrics.text import CHRFScore, SacreBLEUScore

pairs = {
    "long": ("the cat sat on the mat and slept until noon today", "the cat sat on the mat and it slept until noon"),
    "no four common words": ("the cat sat on mat", "a cat is on the mat"),
    "three letters": ("abc", "abx"),
}
found = {}
for name, (text, reference) in pairs.items():
    bleu = [SacreBLEUScore(), SacreBLEUScore(smooth=True)]
    found[name] = {
        "bleu": [round(float(metric([text], [[reference]])), 4) for metric in bleu],
        "sacrebleu's": round(sacrebleu.corpus_bleu([text], [[reference]]).score / 100, 4),
        "chrF": round(float(CHRFScore()([text], [[reference]])), 4),
        "sacrebleu's chrF": round(sacrebleu.corpus_chrf([text], [[reference]], word_order=2).score / 100, 4),
    }
print("torchmetrics", torchmetrics.__version__, "sacrebleu", sacrebleu.__version__, "torch", torch.__version__, found)
long, few, short = found.values()
same = abs(long["bleu"][0] - long["sacrebleu's"]) < 1e-3 and abs(long["chrF"] - long["sacrebleu's chrF"]) < 1e-3
apart = few["bleu"] == [0, 0] and few["sacrebleu's"] > 0.1 and short["chrF"] < 0.6 * short["sacrebleu's chrF"]
sys.exit(not (same and apart))
PYTHON
