#!/bin/sh
# timm 1.0.31, torch 2.13.0 (CPU): AvgPool2dSame, "TensorFlow like", and create_pool2d("avg", padding="same"), with count_include_pad=False. Expected: means
# of what lies in the picture, as TensorFlow, Keras and nn.AvgPool2d(count_include_pad=False) take them: a map of ones stays ones. Seen: zeros are added
# before the mean is taken, and the option has no effect: at the right and lower edge a map of ones is 0.5, at the corner 0.25. The shortcut of a dilated
# stage of ConvNeXt (output_stride=8 or 16) asks for it with count_include_pad=False, and is halved at two edges of the map.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchvision==0.28.0 timm==1.0.31 numpy
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import timm
import torch
from timm.layers import AvgPool2dSame, create_pool2d
from timm.models.convnext import Downsample

ones = torch.ones(1, 1, 5, 5)
layers = {
    "AvgPool2d": torch.nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "AvgPool2d, ceil": torch.nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
    "AvgPool2dSame": AvgPool2dSame(2, 1, count_include_pad=False), "create_pool2d": create_pool2d("avg", 3, 2, padding="same", count_include_pad=False),
    "ConvNeXt's shortcut": Downsample(1, 1, stride=2, dilation=2),
}
found = {name: {edge: round(float(y), 3) for edge, y in zip(("center", "edge", "corner"), (p[1, 1], p[1, -1], p[-1, -1]))}
         for name, layer in layers.items() for p in (layer(ones)[0, 0],)}
print("timm", timm.__version__, "means of a map of ones:", found)
plain = all(set(found[name].values()) == {1} for name in ("AvgPool2d", "AvgPool2d, ceil"))
same = found["AvgPool2dSame"] == found["ConvNeXt's shortcut"] == {"center": 1, "edge": 0.5, "corner": 0.25}
sys.exit(not (plain and same and found["create_pool2d"]["corner"] == 0.444))
PYTHON
