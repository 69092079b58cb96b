#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): PhiMoE, whose release (Phi-3.5-MoE) has rope_type="longrope": short_factor
# for texts up to original_max_position_embeddings, long_factor for longer ones, and a scale for each of the two.
# Expected: a text over that length is rotated by base^(-2i/d) / long_factor[i], as in Phi-3 in the same test. Seen: by
# short_factor, at every length. The frequencies are made anew in each call, without the length of the text, over those
# that were chosen by it; long_factor may be any list without a change of the logits, while long_mscale, the scale that
# belongs to it, is taken. The release's texts over 4,096 tokens are read as by another model. Short texts are right. No
# error, no warning.
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
sizes |= {"max_position_embeddings": 64, "original_max_position_embeddings": 32}
text = torch.randint(3, 40, (1, 60), generator=torch.Generator().manual_seed(0))
short, long, other = [1.0, 1.1, 1.2, 1.3], [1.5, 2.0, 3.0, 4.0], [1.0, 8.0, 16.0, 32.0]


def logits(name, short, long, length, long_mscale=1.1):
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32}
    rope |= {"short_factor": short, "long_factor": long}
    if name == "Phimoe":
        rope |= {"short_mscale": 1.1, "long_mscale": long_mscale}
    torch.manual_seed(0)
    model = getattr(t, name + "ForCausalLM")(getattr(t, name + "Config")(**sizes, rope_parameters=rope)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                weights.normal_(0, 1.5 * weights.shape[1] ** -0.5, generator=generator)
        out = model(text[:, :length], use_cache=False).logits
    turned = []
    model.model.rotary_emb.register_forward_hook(lambda module, given, output: turned.append(output))
    with torch.no_grad():
        model(text[:, :length], use_cache=False)
    cos, sin = turned[0]
    angles = torch.atan2(sin[0, 1, :4], cos[0, 1, :4]).tolist()  # of the second token: the frequencies
    return out, angles


found = {}
for name in ("Phi3", "Phimoe"):
    for length in (20, 60):
        first, angles = logits(name, short, long, length)
        changes = [logits(name, short, other, length)[0], logits(name, other, long, length)[0]]
        changes = [round(float((out - first).abs().max() / first.abs().max()), 4) for out in changes]
        found[name, length] = angles, changes
print("transformers", t.__version__, "factors that hold, change of the logits by another long_factor, short_factor:")
wanted = {20: short, 60: long}
right = {}
for (name, length), (angles, changes) in found.items():
    factors = [round(10000.0 ** (-i / 4) / angle, 1) for i, angle in enumerate(angles)]
    print(name, "text of", length, "tokens:", factors, *changes)
    other_changes, own_changes = changes if length == 20 else changes[::-1]
    right[name, length] = own_changes > 0.1 and other_changes == 0 and factors == wanted[length]
scale = logits("Phimoe", short, long, 60)[0] - logits("Phimoe", short, long, 60, long_mscale=2.0)[0]
print("Phimoe, change by another long_mscale, text of 60 tokens:", round(float(scale.abs().max()), 3))
angles, changes = found["Phimoe", 60]
never = changes[0] == 0 and changes[1] > 0.1 and angles == found["Phimoe", 20][0]
sys.exit(not (right["Phi3", 20] and right["Phi3", 60] and right["Phimoe", 20] and never and scale.abs().max() > 0.01))
PYTHON
