#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): RecurrentGemmaForCausalLM of a text with padding on the left and attention_mask of 0 there, with
# position_ids that begin at the text. Expected: what is masked does not change the logits, as in Mamba-2 and Jamba, which set it to 0. Seen:
# the recurrent layers and their convolutions take no mask and read the padding; another padding token gives other logits, and neither gives those of
# the text alone. Texts of several lengths in a batch have to be padded on the right.
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

sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 3}
options = {
    "RecurrentGemma": {
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 96, "lru_width": 32, "attention_window_size": 64,
        "block_types": ["recurrent", "recurrent", "attention"], "w_init_variance_scale": 1.0,
    },
    "Mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8, "state_size": 8, "initializer_range": 0.3},
}
tokens = torch.randint(3, 40, (2, 24), generator=torch.Generator().manual_seed(0))
mask = torch.nn.functional.pad(torch.ones_like(tokens), (5, 0))
positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
found = {}
for name, option in options.items():
    torch.manual_seed(0)
    model = getattr(transformers, name + "ForCausalLM")(getattr(transformers, name + "Config")(**sizes, **option)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim == 2 and "conv" not in path:
                parameter.normal_(0, 1 if "embed" in path else parameter.shape[1] ** -0.5, generator=generator)
        given = positions if name == "RecurrentGemma" else {}
        alone = model(tokens, use_cache=False).logits
        padded = [
            model(torch.nn.functional.pad(tokens, (5, 0), value=x), attention_mask=mask, use_cache=False, **given).logits[:, 5:] for x in (5, 9)
        ]
    pairs = (padded[0], padded[1]), (padded[0], alone)
    found[name] = [float((a - b).abs().max() / alone.abs().max()) for a, b in pairs]
print("transformers", transformers.__version__, "relative change by another token of padding, by padding at all:", found)
sys.exit(not (min(found["RecurrentGemma"]) > 1e-2 and max(found["Mamba2"]) < 1e-4))
PYTHON
