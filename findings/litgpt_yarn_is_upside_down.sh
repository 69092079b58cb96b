#!/bin/sh
# litgpt 0.5.13, torch 2.13.0 (CPU): rope_adjustments with beta_fast and beta_slow, which its Config and errors call
# YaRN. Expected, as in the paper (arXiv:2309.00071, 3.2) and transformers: frequencies that turn more than beta_fast
# times in the first context stay as they are, those that turn less than beta_slow times are divided by the factor.
# Seen: the other way round: the fast ones, which tell neighbors apart, are divided by the factor, and the slow ones,
# which the scaling is for, stay and go beyond the angles of training. Nor are cosines scaled by 0.1 ln(factor) + 1
# where no mscale is given, as the paper has it. No error, no warning. Scaling of Llama 3 beside it is right.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 lightning==2.6.6 litgpt==0.5.13
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import math
import sys

import torch
from litgpt import GPT, Config

size, base, factor, context, fast, slow = 64, 10000, 8.0, 2048, 32.0, 1.0


def frequencies(adjustments):
    """Angles from one position to the next, and the length of the pair of cosine and sine."""
    model = GPT(Config(
        block_size=32, n_layer=1, n_embd=2 * size, n_head=2, head_size=size, padded_vocab_size=8, rope_base=base,
        rotary_percentage=1.0, rope_adjustments=adjustments,
    ))
    cos, sin = model.cos[1, : size // 2].double(), model.sin[1, : size // 2].double()
    return torch.atan2(sin, cos), float(torch.hypot(sin, cos).mean())


plain, _ = frequencies(None)
turns = context * plain / (2 * math.pi)
found, length = frequencies(dict(factor=factor, beta_fast=fast, beta_slow=slow, original_max_seq_len=context))
llama, _ = frequencies(dict(factor=factor, low_freq_factor=slow, high_freq_factor=fast, original_max_seq_len=context))
for i in range(0, size // 2, 4):
    print(f"{turns[i]:8.2f} turns in {context} positions: divided by {plain[i] / found[i]:.2f}, "
          f"by {plain[i] / llama[i]:.2f} with the scaling of Llama 3")
print(f"length of cosine and sine {length:.3f}; 0.1 ln(factor) + 1 is {0.1 * math.log(factor) + 1:.3f}")
print("litgpt", importlib.metadata.version("litgpt"))
# A margin of 2 around the limits, since these are rounded to whole dimensions.
quick, late = turns > 2 * fast, turns < slow / 2
kept, divided = plain, plain / factor


def same(a, b, where):
    return bool(((a / b)[where] - 1).abs().max() < 1e-3)


inverted = same(found, divided, quick) and same(found, kept, late)
right = same(llama, kept, quick) and same(llama, divided, late)
sys.exit(not (quick.any() and late.any() and inverted and right and abs(length - 1) < 1e-4))
PYTHON
