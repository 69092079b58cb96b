#!/bin/sh
# transformers 5.23.0, torch 2.13.0: BigBirdModel in eval mode, attention_type="block_sparse", the default. Expected: a text's output does not
# depend on what the model was called with before. Seen: a text no longer than the pattern, (5 + 2 * num_random_blocks) * block_size tokens (704 by
# default), is read with full attention, and the model stays so: long texts are then read with full attention too, at its cost and with other
# outputs, while its configuration still says block_sparse. The only notice is a warning of the short call.
# model.set_attention_type("block_sparse") before each text serves. Ends with 0 as long as this is so, with 1 once it changes.
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
torch.manual_seed(0)
config = transformers.BigBirdConfig(**size, max_position_embeddings=64, block_size=2, num_random_blocks=1, initializer_range=0.3)
model = transformers.BigBirdModel(config).eval()
tokens = torch.randint(3, 40, (1, 48), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    first, again = model(tokens)[0], model(tokens)[0]
    model(tokens[:, :8])
    after = model(tokens)[0]
    says = model.config.attention_type
    model.set_attention_type("block_sparse")
    restored = model(tokens)[0]
repeated, changed, mended = (float((other - first).abs().max() / first.abs().max()) for other in (again, after, restored))
print("transformers", transformers.__version__, {"repeated": repeated, "after a short text": changed, "set again": mended})
print("the configuration after a short text:", says)
sys.exit(not (max(repeated, mended) < 1e-5 and changed > 0.01 and says == "block_sparse"))
PYTHON
