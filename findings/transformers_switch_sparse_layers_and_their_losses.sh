#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): SwitchTransformersConfig(num_layers=12, num_sparse_encoder_layers=n).
# Expected: n sparse layers, none for 0, as a comment in the code says; and with output_router_logits=True a loss that
# balances the experts of all of them. Seen: 5 gives 6 sparse layers, 7 to 12 give 12, and 0 gives one, as every twelfth
# layer is sparse, the second first. Where all layers are sparse, the loss has no part for balance and the z-loss is 0
# as well: both are left out for a step of 1, and routers of such an encoder or decoder are trained by the text alone,
# without a warning. With a step of 2 or more both are there.
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
sizes = {"vocab_size": 40, "d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_experts": 4, "dropout_rate": 0.0}
sizes |= {"num_layers": 12, "num_decoder_layers": 12, "decoder_start_token_id": 0, "router_jitter_noise": 0.0}
tokens = torch.randint(3, 40, (2, 12), generator=torch.Generator().manual_seed(0))
found = {}
for sparse in (0, 3, 4, 5, 6, 7, 12):
    torch.manual_seed(0)
    options = {"num_sparse_encoder_layers": sparse, "num_sparse_decoder_layers": sparse}
    model = t.SwitchTransformersForConditionalGeneration(t.SwitchTransformersConfig(**sizes, **options)).eval()
    layers = sum(type(m).__name__ == "SwitchTransformersSparseMLP" for m in model.encoder.modules())
    with torch.no_grad():
        read = model(input_ids=tokens, labels=tokens, output_router_logits=True)
        plain = model(input_ids=tokens, labels=tokens)
    losses = [
        float(x) for x in (read.encoder_aux_loss, read.decoder_aux_loss, read.encoder_z_loss, read.loss - plain.loss)
    ]
    found[sparse] = layers, [round(x, 6) for x in losses]
print(
    "transformers",
    t.__version__,
    "sparse layers asked for, made, balance in encoder and decoder, z, their part of the loss:",
)
for sparse, numbers in found.items():
    print(sparse, *numbers)
counts = {sparse: layers for sparse, (layers, _) in found.items()}
lost = all(found[sparse][1] == [0.0] * 4 for sparse in (7, 12))
there = all(min(found[sparse][1]) > 1e-3 for sparse in (3, 4, 5, 6))
sys.exit(not (counts == {0: 1, 3: 3, 4: 4, 5: 6, 6: 6, 7: 12, 12: 12} and lost and there))
PYTHON
