#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): expert_capacity of NllbMoeConfig (64 by default), "number of tokens that can
# be stored in each expert", and moe_eval_capacity_token_fraction (1.0), the fraction of a batch that is the capacity
# in evaluation. Expected: the one holds in training and the other in evaluation, as the names say. Seen: evaluation
# writes its capacity over the one of the configuration, for good. Training goes on with that of the last call in eval
# mode, which after generate() is the number of texts in the batch, times beams: after a translation of one text each
# expert of the decoder takes one token of the whole training batch, and all others have no output of their sparse
# layers and no gradient in them. The loss of the same batch with the same weights is another before and after a
# translation, and a model that is evaluated between its epochs is trained as another one from the second epoch on. No
# warning.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
import transformers as t

t.logging.set_verbosity_error()
texts = torch.randint(3, 40, (4, 12), generator=torch.Generator().manual_seed(0))
sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_sparse_step": 1, "decoder_sparse_step": 1}
sizes |= {"dropout": 0.0, "attention_dropout": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
sizes |= {"moe_token_dropout": 0.0, "vocab_size": 40, "num_experts": 4, "pad_token_id": 0}
model = t.NllbMoeForConditionalGeneration(t.NllbMoeConfig(**sizes))
generator = torch.Generator().manual_seed(1)
with torch.no_grad():
    for weights in model.parameters():
        if weights.ndim == 2:
            weights.normal_(0, weights.shape[1] ** -0.5, generator=generator)
routers = [module for module in model.modules() if hasattr(module, "expert_capacity")]
served = []
for router in routers:
    router.register_forward_hook(lambda module, given, output: served.append(int((output[1] > 0).any(-1).sum())))


def train():
    del served[:]
    with torch.no_grad():
        loss = float(model.train()(input_ids=texts, labels=texts).loss)
    return [router.expert_capacity for router in routers], list(served), round(loss, 4)


found = {"new": train(), "again": train()}
with torch.no_grad():
    model.eval()(input_ids=texts[:2], decoder_input_ids=texts[:2, :5])
found["after an evaluation of 2 texts, 12 and 5 tokens long"] = train()
model.eval().generate(texts[:1], max_new_tokens=4, min_new_tokens=4)
found["after a translation of one text"] = train()
print("transformers", t.__version__, "capacities of encoder and decoder, tokens of 48 that have an expert, loss:")
for key, numbers in found.items():
    print(key, *numbers)
new, again, evaluated, translated = found.values()
same = new == again and new[0] == [64, 64] and new[1] == [48, 48]
kept = evaluated[0] == [24, 10] and translated[0] == [12, 1]
dropped = translated[1][1] < 9 and abs(translated[2] - new[2]) > 0.05
sys.exit(not (same and kept and dropped))
PYTHON
