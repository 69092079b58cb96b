#!/bin/sh
# self-attention-cv 1.2.3, torch 2.13.0 (CPU): AxialAttention, of Axial-DeepLab (arXiv:2003.07853): the score of query o for key p is q_o k_p + q_o r^q_{p-o}
# + k_p r^k_{p-o}. Expected: with queries of 0 the weights of a row depend on all of its keys, through the last term. Seen: the last term has the key at the
# place of the query, not that of the key it is added to: the weights of query o depend on no key but its own, k_o. The position term of keys, which the paper
# adds to the others, does not tell the attended keys apart by their content.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy einops==0.8.2
"$folder/venv/bin/pip" install --quiet --no-deps self-attention-cv==1.2.3
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys
import types

import torch

package = types.ModuleType("self_attention_cv")  # the package itself imports torchvision, which this layer does not need
package.__path__ = [str(importlib.metadata.distribution("self-attention-cv").locate_file("self_attention_cv"))]
sys.modules["self_attention_cv"] = package
from self_attention_cv.axial_attention_deeplab.axial_attention import AxialAttention

torch.manual_seed(0)
layer, weights = AxialAttention(dim=6, in_channels=16, heads=2, dim_head_kq=4).eval(), []
softmax = torch.softmax
with torch.no_grad():
    # Channels are laid out as (q + k + v, head): the first 4 of each head are its queries.
    layer.to_qvk[0].weight[: 4 * 2].zero_()
    x = torch.randn(1, 16, 6)
    other = x.clone()
    other[:, :, 3] = torch.randn(16)
    torch.softmax = lambda *arguments, **options: weights.append(softmax(*arguments, **options)) or weights[-1]
    layer(x), layer(other)
    torch.softmax = softmax
changed = [query for query in range(6) if (weights[0] - weights[1])[0, :, query].abs().max() > 1e-6]
print("self-attention-cv", importlib.metadata.version("self-attention-cv"), "queries whose weights change with key 3, of 6:", changed)
sys.exit(changed != [3])
PYTHON
