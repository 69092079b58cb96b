#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): decoders of AutoModelForCausalLM called with labels=input_ids, as
# DataCollatorForLanguageModeling(mlm=False) makes them for the Trainer. Expected: labels are moved by one in the model,
# as in GPT-2, OPT, XGLM, BioGPT and all newer ones, and the loss is that of the next token. Seen: BartForCausalLM, and
# those of MBart, Pegasus, BigBird-Pegasus, Marian, Blenderbot, PLBart, MVP, TrOCR and Whisper, score each place against
# its own token, which they have just read: the loss is another, and training teaches them to copy, to a loss near 0 on
# text without any order, while the next token is no better than chance. No error, no warning. Labels have to be moved
# before.
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
from torch.nn.functional import cross_entropy

t.logging.set_verbosity_error()
sizes = {"vocab_size": 40, "d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
sizes |= {"dropout": 0.0, "pad_token_id": 0, "is_decoder": True, "is_encoder_decoder": False, "init_std": 0.2}
sizes["max_position_embeddings"] = 64
other = {
    "Whisper": {"max_target_positions": 64, "begin_suppress_tokens": []},
    "OPT": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "word_embed_proj_dim": 32,
    },
    "XGLM": {"num_layers": 1, "attention_heads": 4, "ffn_dim": 48, "activation_dropout": 0.0},
    "BioGpt": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48},
}
names = ("Bart", "MBart", "Pegasus", "BigBirdPegasus", "Marian", "Blenderbot", "PLBart", "Mvp", "TrOCR", "Whisper")
names += ("OPT", "XGLM", "BioGpt")
found = {}
for name in names:
    torch.manual_seed(0)
    config = getattr(t, name + "Config")(**{**sizes, **other.get(name, {})})
    model = t.AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    for step in range(100):
        tokens = torch.randint(3, 40, (16, 24))  # without any order
        read = model(tokens, labels=tokens, use_cache=False)
        if step == 0:
            following = cross_entropy(read.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            own = cross_entropy(read.logits.flatten(0, 1), tokens.flatten())
            apart = [float(abs(read.loss - x)) for x in (following, own)]
        optimizer.zero_grad()
        read.loss.backward()
        optimizer.step()
    found[type(model).__name__] = [round(x, 4) for x in (*apart, float(read.loss))]
print(
    "transformers", t.__version__, "loss beside that of the next token, beside that of the own token, after training:"
)
for name, numbers in found.items():
    print(name, *numbers)
copy = [n[0] > 0.01 and n[1] < 1e-4 and n[2] < 0.5 for n in found.values()]
move = [n[0] < 1e-4 and n[1] > 0.01 and n[2] > 3 for n in found.values()]
sys.exit(not (all(copy[:10]) and all(move[10:])))
PYTHON
