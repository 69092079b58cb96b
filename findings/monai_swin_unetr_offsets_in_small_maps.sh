#!/bin/sh
# monai 1.6.1, torch 2.13.0 (CPU): SwinUNETR where the map of a stage is smaller than its window, as the last stage is
# by default (window 7; pictures of 96 or 64 come to maps of 6 or 4 before it). The window is cut to the map then.
# Expected: biases of the offsets between tokens, so that two pairs of tokens with one offset share a bias and each bias
# belongs to one offset. Seen: the table of indices of the whole window is cut to its first n rows and columns, so that
# token i is looked up as if it lay where token i of a map 7 wide lies. The token left of the first one of a row is then
# the last one of the row above, and a right neighbor has up to 7 biases. A bias that points to the left neighbor
# alone gets it in whole windows and not in cut ones. No error, no warning. Maps of the window's size or larger have
# none of this.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 monai==1.6.1 einops==0.8.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import monai
import torch
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import SwinTransformerBlock, WindowAttention

torch.manual_seed(0)
torch.set_grad_enabled(False)
model = SwinUNETR(in_channels=1, out_channels=1, feature_size=12, spatial_dims=2).eval()
seen = {}


def look(name):
    return lambda module, inputs: seen.update({name: inputs[0].shape[1]})


for name, module in model.named_modules():
    if isinstance(module, WindowAttention):
        module.register_forward_pre_hook(look(name.split(".blocks")[0]))
model(torch.randn(1, 1, 96, 96))
print("tokens in a window of each stage of a picture of 96:", seen)

block = SwinTransformerBlock(4, 1, (7, 7), (0, 0), qkv_bias=True).eval()
block.norm1 = torch.nn.Identity()
attention = block.attn
attention.qkv.weight.zero_()
attention.qkv.bias.zero_()
attention.qkv.weight[8:] = torch.eye(4)
attention.proj.weight.copy_(torch.eye(4))
attention.proj.bias.zero_()
attention.relative_position_bias_table.zero_()
# The row of the table for a key one to the left of its query: offsets count from -6, and are those of query less key.
attention.relative_position_bias_table[6 * 13 + 7] = 100.0
wrong = {}
for side in 7, 6, 4, 3:
    x = torch.arange(side * side, dtype=torch.float32).reshape(1, side, side, 1).expand(-1, -1, -1, 4)
    taken = block.forward_part1(x, None)[0, :, :, 0]
    first = taken[:, 0]
    left = (taken[:, 1:] - x[0, :, :-1, 0]).abs() < 1e-3
    above = (first[1:] - x[0, :-1, -1, 0]).abs() < 1e-3
    wrong[side] = int((~left).sum()), int(above.sum())
    print(f"map of {side}, of {side * (side - 1)} tokens with a left neighbor {wrong[side][0]} don't get it;")
    print(f"of {side - 1} first tokens of a row {wrong[side][1]} get the last one of the row above")
print("monai", monai.__version__, "torch", torch.__version__)
stages = list(seen.values())
small = [wrong[side] for side in (6, 4, 3)]
sys.exit(not (stages == [49, 49, 49, 36] and wrong[7] == (0, 0) and all(left and above for left, above in small)))
PYTHON
