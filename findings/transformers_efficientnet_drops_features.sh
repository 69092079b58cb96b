#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): drop_connect_rate of EfficientNetConfig and AlignVisionConfig, documented as
# "the drop rate for skip connections". Expected: stochastic depth, as in the authors' code, in Keras and timm, whose
# weights these are: a block's branch is left out for a whole picture, or kept and scaled. Seen: the rate is that of an
# ordinary dropout: single numbers of the branch are set to 0 in every picture, and no branch is ever left out, in
# training with any rate; a rate of 0.5 is another regularization, with other variances for the batch norms behind it.
# ConvNeXt's branches, in the same test, are left out as a whole.
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
small = {
    "width_coefficient": 0.25,
    "depth_coefficient": 1.0,
    "image_size": 64,
    "hidden_dim": 320,
    "drop_connect_rate": 0.5,
}
models = {
    "EfficientNet": (t.EfficientNetModel, t.EfficientNetConfig(**small)),
    "Align": (t.AlignVisionModel, t.AlignVisionConfig(**small)),
    "ConvNext": (t.ConvNextModel, t.ConvNextConfig(hidden_sizes=[16, 32, 48, 64], drop_path_rate=0.5)),
}
pixels = torch.randn(64, 3, 64, 64, generator=torch.Generator().manual_seed(0))
found = {}
for name, (kind, config) in models.items():
    torch.manual_seed(0)
    model = kind(config).train()
    rows = {"left out": 0, "kept": 0, "in part": 0}

    def watch(module, given, output, rows=rows):
        """Counts the pictures of which all, nothing or a part of a branch is left."""
        zero = ((output == 0) & (given[0] != 0)).flatten(1)
        there = (given[0] != 0).flatten(1)
        rows["left out"] += int((zero | ~there).all(1).sum())
        rows["kept"] += int((~zero).all(1).sum())
        rows["in part"] += int((zero.any(1) & ~(zero | ~there).all(1)).sum())

    for path, module in model.named_modules():
        rate = getattr(module, "drop_prob", getattr(module, "p", 0))
        last = path.endswith(("projection.dropout", "drop_path"))
        if last and rate > 0.2:
            module.register_forward_hook(watch)
    with torch.no_grad():
        model(pixels)
    found[name] = rows
print("transformers", t.__version__, "branches of single pictures with a rate above 0.2:", found)
whole = found.pop("ConvNext")
right = whole["in part"] == 0 and min(whole["left out"], whole["kept"]) > 50
sys.exit(not (right and all(r["in part"] > 50 and r["left out"] == r["kept"] == 0 for r in found.values())))
PYTHON
