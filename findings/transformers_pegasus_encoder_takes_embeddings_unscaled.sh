#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): PegasusForConditionalGeneration and MarianMTModel, whose released
# configurations have scale_embedding=True, called with inputs_embeds and decoder_inputs_embeds of
# get_input_embeddings(), in place of ids. Expected: the logits of the ids, as BART and M2M-100 with
# scale_embedding=True give them. Seen: so for the decoder alone. The encoder multiplies by sqrt(d_model) what it looks
# up and not what it is given, so that words are 22 or 32 times weaker against their positions; the decoder multiplies
# both. MVP, of the same family, does not multiply in either. Soft prompts, and attributions by gradients of embeddings,
# read another model than the one that reads ids. No error, no warning.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import math
import sys

import torch
import transformers as t

t.logging.set_verbosity_error()
sizes = {"vocab_size": 40, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 64}
sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
sizes |= {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0, "init_std": 0.2}
names = {"Pegasus": "PegasusForConditionalGeneration", "Marian": "MarianMTModel", "Mvp": "MvpForConditionalGeneration"}
names |= {"Bart": "BartForConditionalGeneration", "M2M100": "M2M100ForConditionalGeneration"}
generator = torch.Generator().manual_seed(0)
source, target = (torch.randint(3, 40, (2, size), generator=generator) for size in (14, 9))
found = {}
for name, kind in names.items():
    for scaled in (True, False):
        torch.manual_seed(0)
        config = getattr(t, name + "Config")(**sizes, scale_embedding=scaled)
        model = getattr(t, kind)(config).eval()
        with torch.no_grad():
            table = model.get_input_embeddings()
            whole = model(input_ids=source, decoder_input_ids=target).logits
            ways = {
                "encoder": {"inputs_embeds": table(source), "decoder_input_ids": target},
                "encoder, scaled by hand": {"inputs_embeds": table(source) * 8, "decoder_input_ids": target},
                "decoder": {"input_ids": source, "decoder_inputs_embeds": table(target)},
            }
            for way, given in ways.items():
                if not ("hand" in way and not scaled):
                    found[name, scaled, way] = float((model(**given).logits - whole).abs().max() / whole.abs().max())
assert math.sqrt(sizes["d_model"]) == 8
print("transformers", t.__version__, "(model, scale_embedding, embeddings given): change of the logits:")
for key, change in found.items():
    print(*key, f"{change:.1e}")
same = {key: change < 1e-4 for key, change in found.items()}
plain = all(right for (_, scaled, _), right in same.items() if not scaled)
others = all(same[name, True, way] for name in ("Bart", "M2M100") for way in ("encoder", "decoder"))
parts = [
    [same[name, True, way] for way in ("encoder", "encoder, scaled by hand", "decoder")]
    for name in ("Pegasus", "Marian", "Mvp")
]
far = all(right or found[key] > 0.02 for key, right in same.items())
sys.exit(not (plain and others and far and parts == [[False, True, True], [False, True, True], [False, True, False]]))
PYTHON
