#!/bin/sh
# open-clip-torch 3.3.0, torch 2.13.0 (CPU): a CoCa made without weights, to be trained. Expected: all parameters have a start, as in CLIP of the same
# package. Seen: the last matrix of the text decoder, text_projection, which makes the logits, is what torch.empty gave: old contents of memory, mostly zeros
# in a new process, the numbers of freed tensors, NaN among them, in one that made others before. The method that would set it is never called, and neither
# are the other weights of the decoder set as it says. Shown with PyTorch's own switch that fills such memory with NaN: the logits are NaN, all else is
# finite.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchvision==0.28.0 numpy open-clip-torch==3.3.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import open_clip
import torch

sizes = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 4, "layers": 2}
vision = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8}
pooled = {**vision, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
torch.manual_seed(0)
torch.use_deterministic_algorithms(True)  # with it torch.empty gives NaN
models = {
    "CLIP": open_clip.CLIP(16, vision, sizes), "CustomTextCLIP": open_clip.CustomTextCLIP(16, vision, sizes),
    "CoCa": open_clip.CoCa(32, sizes, {**sizes, "embed_cls": True, "output_tokens": True}, pooled),
}
torch.use_deterministic_algorithms(False)
found = {name: [key for key, value in model.state_dict().items() if value.is_floating_point() and value.isnan().any()] for name, model in models.items()}
with torch.no_grad():
    y = models["CoCa"].eval()(torch.rand(2, 3, 32, 32), torch.randint(1, 50, (2, 11)))
finite = {key: bool(value.isfinite().all()) for key, value in y.items()}
print("open_clip", open_clip.__version__, "torch", torch.__version__, "never set:", found, "finite outputs of CoCa:", finite)
alright = not found["CLIP"] and not found["CustomTextCLIP"] and all(value for key, value in finite.items() if key != "logits")
sys.exit(not (alright and found["CoCa"] == ["text_decoder.text_projection"] and not finite["logits"]))
PYTHON
