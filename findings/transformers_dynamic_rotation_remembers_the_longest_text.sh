#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): Llama with rope_type="dynamic", whose base grows with the length of the text
# over max_position_embeddings, in eval mode, without a cache. Expected: a text has the same logits whatever the model
# was called with before. Seen: frequencies of the longest text so far stay for all that are as long as
# max_position_embeddings or longer, up to the next text shorter than that, which resets them. After one of 80 tokens,
# where 32 are the limit, the logits of one of 40 are off by half of the largest, and so are those of one of exactly 32,
# which needs no scaling at all; after a text of 16 all are right again. A perplexity over long texts depends on their
# order. rope_type="longrope", which also looks at the length, has no memory. No warning.
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
sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
sizes |= {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
text = torch.randint(3, 40, (1, 80), generator=torch.Generator().manual_seed(0))
kinds = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "longrope": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]},
}


def new(kind):
    rope = {"rope_theta": 10000.0, "original_max_position_embeddings": 32, **kinds[kind]}
    model = t.LlamaForCausalLM(t.LlamaConfig(**sizes, max_position_embeddings=32, rope_parameters=rope)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                weights.normal_(0, 1.5 * weights.shape[1] ** -0.5, generator=generator)
    return model


def logits(model, length):
    with torch.no_grad():
        return model(text[:, :length], use_cache=False).logits


found = {}
for kind in kinds:
    model = new(kind)
    found[kind] = []
    for length in (40, 80, 40, 32, 40, 16, 40):
        alone = logits(new(kind), length)
        found[kind].append((length, round(float((logits(model, length) - alone).abs().max() / alone.abs().max()), 3)))
print("transformers", t.__version__, "length of each text of a row, distance of its logits from those of a new model:")
for kind, rows in found.items():
    print(kind, rows)
wrong = [distance > 0.1 for _, distance in found["dynamic"]] == [False, False, True, True, True, False, False]
right = max(distance for _, distance in found["longrope"]) < 1e-5
sys.exit(not (wrong and right))
PYTHON
