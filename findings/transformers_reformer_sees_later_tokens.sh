#!/bin/sh
# transformers 5.23.0, torch 2.13.0: ReformerModelWithLMHead with is_decoder=True, eval mode, a fixed hash_seed. Expected: the logits of a token do not
# depend on those behind it; its masks are causal. Seen: with LSH layers they do. Tokens are sorted by bucket and cut into chunks, and where a chunk begins
# depends on all tokens of the text, so that another last token changes what tokens before it can see: more than 0.1 of the largest logit. With
# local layers alone nothing changes. Perplexities of a text read at once are not those of a text read token by token.
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
import transformers

sizes = {"vocab_size": 40, "attention_head_size": 8, "num_attention_heads": 4, "hidden_size": 32, "feed_forward_size": 48}
chunks = {"lsh_attn_chunk_length": 4, "local_attn_chunk_length": 4, "num_buckets": 8, "hash_seed": 0}
tokens = torch.randint(3, 40, (1, 48), generator=torch.Generator().manual_seed(0))
other = tokens.clone()
other[:, -1] = (other[:, -1] - 2) % 37 + 3
found = {}
for kind in ("lsh", "local"):
    for hashes in (1, 4):
        torch.manual_seed(0)
        config = transformers.ReformerConfig(
            **sizes, **chunks, attn_layers=[kind, kind], num_hashes=hashes, axial_pos_embds=False, is_decoder=True,
            max_position_embeddings=64, initializer_range=0.5,
        )
        model = transformers.ReformerModelWithLMHead(config).eval()
        with torch.no_grad():
            logits, again, changed = (model(x, use_cache=False).logits for x in (tokens, tokens, other))
        apart = (changed - logits).abs().amax(-1)[0, :-1] / logits.abs().max()
        found[kind, hashes] = float(apart.max()), int((apart > 1e-3).sum()), float((again - logits).abs().max())
print("transformers", transformers.__version__, "change by the last token, places of 47 before it that change, repeated:", found)
hashed, local = ([found[kind, hashes] for hashes in (1, 4)] for kind in ("lsh", "local"))
sys.exit(not (min(f[0] for f in hashed) > 0.01 and max(f[0] for f in local) < 1e-6 and max(f[2] for f in hashed) == 0))
PYTHON
