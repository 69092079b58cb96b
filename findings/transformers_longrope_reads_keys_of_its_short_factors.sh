#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): greedy generate() of models with rope_type="longrope", which rotates by
# long_factor once a text is longer than original_max_position_embeddings, from a prompt shorter than that to an end
# beyond it. Expected: the tokens that generate(use_cache=False) gives, which are the argmax of the model's logits, as
# for Phi-3, whose generate() reads the text anew where it grows over the limit. Seen: other tokens from the limit on
# with Llama, Qwen2, Mistral and Cohere. The cached keys stay rotated by short_factor and are read with queries rotated
# by long_factor, so that distances between them are neither; the option is the same for all of them. Prompts over the
# limit, and texts that stay below it, are right. No warning.
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
sizes |= {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 8}
sizes |= {"max_position_embeddings": 64}
texts = torch.randint(3, 40, (2, 36), generator=torch.Generator().manual_seed(0))
rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32}
rope |= {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 3.0, 4.0]}
options = {"do_sample": False, "eos_token_id": None}
found = {}
for name in ("Phi3", "Llama", "Qwen2", "Mistral", "Cohere"):
    extra = {"original_max_position_embeddings": 32} if name == "Phi3" else {}
    config = getattr(t, name + "Config")(**sizes, **extra, rope_parameters=dict(rope))
    model = getattr(t, name + "ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                weights.normal_(0, 1.5 * weights.shape[1] ** -0.5, generator=generator)
    for start, end in ((8, 30), (24, 44), (36, 50)):
        prompt = texts[:, :start]
        options |= {"attention_mask": torch.ones_like(prompt), "min_length": end, "max_length": end}
        cached, whole = (model.generate(prompt, use_cache=use, **options) for use in (True, False))
        apart = (cached != whole).any(0).nonzero().flatten().tolist()
        with torch.no_grad():
            best = model(whole[:, :-1], use_cache=False).logits[:, -1].argmax(-1)
        assert (best == whole[:, -1]).all()
        found[name, start, end] = apart[0] if apart else None
print("transformers", t.__version__, "first token at which generate() with and without its cache differ, limit 32:")
for (name, start, end), first in found.items():
    print(name, "from", start, "to", end, "tokens:", first)
crossed = {name: first for (name, start, end), first in found.items() if start < 32 < end}
rest = [first for (name, start, end), first in found.items() if not start < 32 < end]
wrong = [first is not None and 32 < first < 44 for name, first in crossed.items() if name != "Phi3"]
sys.exit(not (all(wrong) and crossed["Phi3"] is None and set(rest) == {None}))
PYTHON
