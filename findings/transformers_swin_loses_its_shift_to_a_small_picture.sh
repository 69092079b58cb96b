#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): SwinModel and DonutSwinModel in eval mode with pictures of two sizes. Expected: a
# picture's features do not depend on what the model was called with before, as with Swinv2 in this test. Seen: a layer
# whose map is no larger than its window in one call, where shifted windows make no sense, sets its shift to 0 and keeps it
# so. Once a small picture was read, that stage has no shifted windows any more: later features of large ones are off by
# half of the largest, windows of that stage never exchange anything, in training too, and a new model with the same
# weights gives the right ones, as the shift is no part of a file. With windows of 7 and the usual four stages a call with
# 224 by 224 does it to the last stage of a model that is read or trained at 448. No error, no warning.
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
from transformers import DonutSwinConfig, DonutSwinModel, SwinConfig, SwinModel, Swinv2Config, Swinv2Model

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
sizes = dict(image_size=64, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, drop_path_rate=0.0)
kinds = {
    "Swin": (SwinModel, SwinConfig(**sizes)), "DonutSwin": (DonutSwinModel, DonutSwinConfig(**sizes)),
    "Swinv2": (Swinv2Model, Swinv2Config(**sizes)),
}
generator = torch.Generator().manual_seed(0)
large, small = (torch.randn(2, 3, size, size, generator=generator) for size in (64, 32))
found = {}
for name, (kind, config) in kinds.items():
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight[0].numel() ** -0.5)
        before = model(large).last_hidden_state
        model(small, interpolate_pos_encoding=True)
        after = model(large).last_hidden_state
        fresh = kind(config).eval()
        fresh.load_state_dict(model.state_dict())
        new = fresh(large).last_hidden_state
    shifts = [(m.shift_size, m.window_size) for m in model.modules() if hasattr(m, "shift_size")]
    found[name] = float((after - before).abs().max() / before.abs().max())
    again = float((new - before).abs().max() / before.abs().max())
    print(f"{name}: off by {found[name]:.3f} of the largest feature after the small picture, a new model with the same "
          f"weights by {again:.1e}; shifts and windows {shifts}")
    found[name + " new"] = again
print("transformers", transformers.__version__)
right = found["Swinv2"] < 1e-5 and all(found[name + " new"] < 1e-5 for name in kinds)
sys.exit(not (right and found["Swin"] > 0.05 and found["DonutSwin"] > 0.05))
PYTHON
