#!/bin/sh
# transformers 5.23.0, torch 2.13.0: NystromformerConfig() has 64 landmarks. Expected: attention of rank 64 through them, and outputs of a row
# that do not depend on the other rows of a batch. Seen: segment_means_seq_len is 64 too, as in the released nystromformer-512 and -4096, and where both
# are equal the layer computes softmax attention over all tokens, of any length; where they differ, a row's output depends on the others', since
# pseudo-inverses start from the largest column sum of the batch, and inv_coeff_init_option=True, which would mend that, raises a TypeError.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads about 300 MB into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 torch==2.13.0 numpy
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
import transformers

torch.manual_seed(0)
sizes = {"vocab_size": 32, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}


def attention(**options):
    config = transformers.NystromformerConfig(**sizes, **options)
    return transformers.NystromformerModel(config).eval().encoder.layer[0].attention.self


x = torch.randn(2, 512, 16)
layer = attention()
with torch.no_grad():
    q, k, v = (f(x).view(2, 512, 2, 8).transpose(1, 2) for f in (layer.query, layer.key, layer.value))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v) + layer.conv(v)
    is_softmax = torch.allclose(layer(x)[0], exact.transpose(1, 2).reshape(2, 512, 16), atol=1e-5)
    layer = attention(segment_means_seq_len=512)
    for parameter in layer.parameters():
        parameter.normal_()
    both, alone = layer(x)[0], torch.cat([layer(row[None])[0] for row in x])
    apart = float((both - alone).abs().max() / alone.abs().max())
try:
    attention(segment_means_seq_len=512, inv_coeff_init_option=True)
    refused = None
except TypeError as error:
    refused = str(error)
print("transformers", transformers.__version__, {"softmax by default": is_softmax, "apart": apart, "refused": refused})
sys.exit(not (is_softmax and apart > 1e-3 and refused))
PYTHON
