#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): drop_path_rate, stochastic depth, of vision models. Expected: rates that rise
# evenly from layer to layer to the one that is given, as in the papers and in ten other models of the package tried.
# Seen: CvT makes such a list for each stage and then takes the entry with the stage's number for all of its layers:
# with its defaults, 0.1 in the last of three stages, its ten layers have 0.022 each, the third of the ten, and their
# mean is less than half of 0.05; a stage with fewer layers than its number is an IndexError. Swin2SR makes the list and
# hands it to no layer: its rate, 0.1 by default, has no effect at all.
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
depths = {"depths": [2, 2, 6]}
sizes = {"embed_dim": 12, "num_heads": [1, 2, 4], "window_size": 4, "image_size": 32, "patch_size": 1, **depths}
models = {
    "Cvt": (t.CvtModel, t.CvtConfig(embed_dim=[8, 12, 24])),
    "Swin2SR": (t.Swin2SRModel, t.Swin2SRConfig(**sizes, drop_path_rate=0.5)),
    "Swin": (t.SwinModel, t.SwinConfig(**sizes, drop_path_rate=0.5)),
    "Swinv2": (t.Swinv2Model, t.Swinv2Config(**sizes, drop_path_rate=0.5)),
    "ConvNext": (t.ConvNextModel, t.ConvNextConfig(hidden_sizes=[8, 8, 8], num_stages=3, drop_path_rate=0.5, **depths)),
}
found = {}
for name, (kind, config) in models.items():
    torch.manual_seed(0)
    model = kind(config).train()
    rates = [m.drop_prob for m in model.modules() if type(m).__name__.endswith("DropPath")]
    outputs = []
    with torch.no_grad():
        pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        for seed in (0, 1):
            torch.manual_seed(seed)
            outputs.append(model(pixels).last_hidden_state)
    found[name] = [round(rate, 4) for rate in rates], bool((outputs[0] == outputs[1]).all())
print(
    "transformers", t.__version__, "rates of stochastic depth that are not 0, and whether two calls in training agree:"
)
for name, pair in found.items():
    print(name, *pair)
rise = [round(0.5 * layer / 9, 4) for layer in range(1, 10)]
even = all(found[name] == (rise, False) for name in ("Swin", "Swinv2", "ConvNext"))
sys.exit(not (even and found["Cvt"][0] == [0.0222] * 10 and found["Swin2SR"] == ([], True)))
PYTHON
