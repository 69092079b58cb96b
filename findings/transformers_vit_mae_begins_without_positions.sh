#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): a new ViTMAEForPreTraining, made from its configuration to be trained from the
# start. Expected: fixed position embeddings of sines and cosines in encoder and decoder, as the paper (arXiv:2111.06377),
# the comments in the code and the released files have them, and as VideoMAE has them in this test. Seen: both are 0, and
# requires_grad is False, so that they stay 0. The model has no positions at all: its decoder, which knows a masked place
# by its position alone, gives the same answer for all masked places of a picture, when it is new and after any number of
# steps, and learns the mean of what is hidden. Initialization reaches the patches' projection first, and the encoder's
# step takes that for a sign that all is done; the decoder makes its waves and then zeroes them. With waves written into
# both the answers differ. Files that are loaded bring their own and are right. No error, no warning; the loss falls.
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
from transformers import VideoMAEConfig, VideoMAEForPreTraining, ViTMAEConfig, ViTMAEForPreTraining

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
sizes = dict(image_size=32, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
decoder = dict(
    decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=4, decoder_intermediate_size=64,
)
generator = torch.Generator().manual_seed(0)
torch.manual_seed(0)
model = ViTMAEForPreTraining(ViTMAEConfig(**sizes, **decoder)).eval()
tables = {"encoder": model.vit.embeddings.position_embeddings, "decoder": model.decoder.decoder_pos_embed}
for name, table in tables.items():
    print(f"ViTMAE, {name}: largest number of its positions {float(table.abs().max())}, trained {table.requires_grad}")
empty = all(float(table.abs().max()) == 0 and not table.requires_grad for table in tables.values())

pictures = torch.randn(4, 3, 32, 32, generator=generator)


def apart():
    """How far the answers for the masked places of a picture are from each other, in parts of the largest."""
    with torch.no_grad():
        answer = model(pictures, noise=torch.rand(4, 64, generator=torch.Generator().manual_seed(1)))
    rows = [logits[mask.bool()] for logits, mask in zip(answer.logits, answer.mask, strict=True)]
    return max(float((row - row[:1]).abs().max() / row.abs().max()) for row in rows)


before = apart()
optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], 1e-3)
model.train()
for _ in range(20):
    optimizer.zero_grad()
    model(pictures).loss.backward()
    optimizer.step()
model.eval()
after = apart()
with torch.no_grad():
    places = torch.arange(64)
    waves = torch.stack([places // 8, places % 8], -1)[..., None] * 10000 ** -(torch.arange(8) / 8)
    for table in tables.values():
        table[0, 1:] = torch.cat([waves.sin(), waves.cos()], -1).flatten(1)
filled = apart()
video = VideoMAEForPreTraining(VideoMAEConfig(num_frames=4, **sizes, **decoder))
other = float(video.videomae.embeddings.position_embeddings.abs().max())
print(f"answers for masked places are apart by {before:.1e} when new, {after:.1e} after 20 steps, {filled:.1e} with waves; "
      f"VideoMAE's largest number {other}")
print("transformers", transformers.__version__)
sys.exit(not (empty and before < 1e-5 and after < 1e-5 and filled > 1e-3 and other > 0.5))
PYTHON
