#!/bin/sh
# monai 1.6.1, torch 2.13.0 (CPU): SABlock and CrossAttentionBlock with use_flash_attention=True, which is meant to be
# the same attention with less memory. Expected: in eval mode what they compute without the option. Seen, without an
# error: the dropout of attention weights goes on in eval mode, so that two calls with one input differ, each by more
# than half of what the numbers are. That holds for DiffusionModelUNet(dropout_cattn=..., use_flash_attention=True) and
# the other networks that pass the option on. And SABlock's attn_mask, documented as a mask of batch and keys, is taken
# as it is for one of queries and keys: where a batch has as many rows as tokens, row i of the mask no longer hides keys
# of text i but hides them from query i of all texts.
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
from monai.networks.blocks import CrossAttentionBlock, SABlock
from monai.networks.nets import DiffusionModelUNet

torch.manual_seed(0)
torch.set_grad_enabled(False)


def apart(a, b):
    """The largest difference, in deviations of b."""
    return float((a - b).abs().max() / b.std())


x = torch.randn(5, 5, 16)
right = []
for kind in SABlock, CrossAttentionBlock:
    flash, plain = (kind(16, 2, 0.3, use_flash_attention=flash).eval() for flash in (True, False))
    flash.load_state_dict(plain.state_dict())
    calls = apart(flash(x), flash(x)), apart(plain(x), plain(x))
    flash.dropout_rate = 0.0
    same = apart(flash(x), plain(x))
    print(f"{kind.__name__}, eval mode, two calls: with flash {calls[0]:.2f}, without {calls[1]:.2f} deviations apart;")
    print(f"with its dropout_rate set to 0, with from without {same:.1e}")
    right.append(calls[0] > 0.3 and calls[1] == 0 and same < 1e-5)

flash, plain = (SABlock(16, 2, use_flash_attention=flash).eval() for flash in (True, False))
flash.load_state_dict(plain.state_dict())
mask = torch.arange(5) <= torch.arange(5)[:, None]
keys, queries = mask[:, None, None], mask
q, k, v = plain.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
ours = [
    plain.out_proj(torch.nn.functional.scaled_dot_product_attention(q, k, v, each).transpose(1, 2).flatten(2))
    for each in (keys, queries)
]
found = [apart(block(x, mask), each) for block in (plain, flash) for each in ours]
print("attn_mask of 5 texts of 5 tokens, apart from (keys of texts hidden, keys of queries hidden):")
print(f"without flash ({found[0]:.1e}, {found[1]:.2f}), with ({found[2]:.2f}, {found[3]:.1e})")
right.append(found[0] < 1e-5 < 0.3 < found[1] and found[3] < 1e-5 < 0.3 < found[2])

for use in True, False:
    torch.manual_seed(0)
    model = DiffusionModelUNet(
        spatial_dims=2, in_channels=1, out_channels=1, num_res_blocks=1, channels=(8, 8), norm_num_groups=4,
        attention_levels=(False, True), num_head_channels=4, with_conditioning=True, cross_attention_dim=8,
        dropout_cattn=0.3, use_flash_attention=use,
    ).eval()
    for parameter in model.parameters():
        parameter.normal_(0, 0.3)
    model_inputs = torch.randn(2, 1, 8, 8), torch.ones(2), torch.randn(2, 3, 8)
    calls = apart(model(*model_inputs), model(*model_inputs))
    print(f"DiffusionModelUNet in eval mode, use_flash_attention={use}: two calls {calls:.2g} deviations apart")
    right.append(calls > 1e-2 if use else calls == 0)
print("monai", monai.__version__, "torch", torch.__version__)
sys.exit(not all(right))
PYTHON
