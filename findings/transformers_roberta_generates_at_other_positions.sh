#!/bin/sh
# transformers 5.23.0, torch 2.13.0: RobertaForCausalLM numbers its positions from pad_token_id + 1 (2 in the released models), as it was
# trained, and CamembertForCausalLM and Data2VecTextForCausalLM do too. Expected: greedy generate() gives the argmax of the model's own
# logits. Seen: other tokens. generate() hands position_ids from 0 to the model, so that the text begins at a row of the table that was
# never trained and the next at that of padding; the argmax at positions from 0 is what it gives, with a cache or without. BERT, whose
# positions are from 0, is generated from as it is called. Ends with 0 as long as this is so, with 1 once it changes.
# Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
import transformers

size = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
tokens = torch.randint(3, 40, (4, 8), generator=torch.Generator().manual_seed(0))
found = {}
for name in ("Bert", "Roberta", "Camembert", "Data2VecText"):
    torch.manual_seed(0)
    config = getattr(transformers, name + "Config")(**size, max_position_embeddings=40, pad_token_id=1, is_decoder=True)
    config.initializer_range = 0.5
    model = getattr(transformers, "BertLMHeadModel" if name == "Bert" else name + "ForCausalLM")(config).eval()

    def greedy(model=model, **options):
        text = tokens
        for length in range(8, 20):
            if options:
                options = {"position_ids": torch.arange(length).expand(4, -1)}
            text = torch.cat([text, model(text, use_cache=False, **options).logits[:, -1:].argmax(-1)], 1)
        return text

    with torch.no_grad():
        texts = [
            model.generate(tokens, max_new_tokens=12, do_sample=False, eos_token_id=None, use_cache=cached) for cached in (True, False)
        ]
        own, from_zero = greedy(), greedy(position_ids=0)
    found[name] = [int((text != other).sum()) for other in (own, from_zero) for text in texts]
print("transformers", transformers.__version__, "tokens of 48 unlike the model's own, with a cache and without; unlike those from 0:")
print(found)
as_called = found.pop("Bert") == [0, 0, 0, 0]
sys.exit(not (as_called and all(min(f[:2]) > 4 and f[2:] == [0, 0] for f in found.values())))
PYTHON
