#!/bin/sh
# linear-attention-transformer 0.19.1, routing-transformer 1.6.1, torch 2.13.0 (CPU): options of the feed-forward layers. Expected: ff_glu=True and
# ff_dropout=0.1 give gated layers with dropout, ff_mult=2 layers half as wide as those of 4, commitment_factor=10 a larger loss of the clusters than 1e-4.
# Seen: LinearAttentionTransformer(LM) makes the feed-forward layers behind its attention without any of its options, so that they have neither gates nor
# dropout (those of receives_context and attend_axially have them); RoutingTransformerLM takes ff_mult, commitment_factor and use_absolute_pos_emb and reads
# none of them: the models are the same, with as many parameters. No error. Numbers reported for these options compare a model with itself.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy linear-attention-transformer==0.19.1 routing-transformer==1.6.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from linear_attention_transformer import LinearAttentionTransformerLM
from routing_transformer import RoutingTransformerLM

sizes = {"num_tokens": 20, "dim": 16, "heads": 2, "depth": 2, "max_seq_len": 64}


def of(kind, **options):
    torch.manual_seed(0)
    model = kind(**sizes, **options)
    rates = sorted({m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)})
    return sum(p.numel() for p in model.parameters()), rates


found = {
    "linear": [of(LinearAttentionTransformerLM, **options) for options in ({}, {"ff_glu": True, "ff_dropout": 0.1})],
    "routing, ff_mult": [of(RoutingTransformerLM, window_size=16, **options)[0] for options in ({}, {"ff_mult": 2}, {"use_absolute_pos_emb": True})],
    "routing, ff_glu": of(RoutingTransformerLM, window_size=16, ff_glu=True)[0],
}
losses = []
for factor in (1e-4, 10.0):
    torch.manual_seed(0)
    model = RoutingTransformerLM(**sizes, window_size=16, commitment_factor=factor).train()
    losses.append(float(model(torch.randint(0, 20, (2, 64)))[1].sum()))
versions = {name: importlib.metadata.version(name) for name in ("linear-attention-transformer", "routing-transformer")}
print(versions, "parameters, and rates of dropout, of the default and of other options:", found, "loss of the clusters by its factor:", losses)
plain, other = found["linear"]
routing = found["routing, ff_mult"]
sys.exit(not (plain == other and 0.1 not in other[1] and len(set(routing)) == 1 and found["routing, ff_glu"] > routing[0] and losses[0] == losses[1]))
PYTHON
