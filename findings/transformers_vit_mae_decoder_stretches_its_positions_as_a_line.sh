#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): ViTMAEForPreTraining with interpolate_pos_encoding=True, "to use the model on
# higher resolution images", of pictures of 28 by 28 patches with a table of 14 by 14, that of the released decoders.
# Expected: place (y, x) gets the position embedding of about (y / 2, x / 2) in encoder and decoder. Seen: so in the
# encoder, which lays its table out as a plane. The decoder stretches its table as one long line of 196 places to 784:
# a row of the table fills two rows of the picture, one half each. Row 10 gets columns 0 to 6 of row 5, and row 11 gets
# columns 7 to 13 of it. One place in seven gets an embedding within one place of its own, columns are off by a quarter
# of the width in the mean, and embeddings by more than the largest number in the table. The decoder puts patches
# elsewhere than the encoder saw them. No warning. At the table's own size both are right.
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
from torch.nn.functional import interpolate, normalize
from transformers import ViTMAEConfig, ViTMAEForPreTraining

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
old, new, size = 14, 28, 64
sizes = dict(hidden_size=size, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
decoder = dict(
    decoder_hidden_size=size, decoder_num_hidden_layers=1, decoder_num_attention_heads=4, decoder_intermediate_size=64,
)
torch.manual_seed(0)
model = ViTMAEForPreTraining(ViTMAEConfig(image_size=4 * old, patch_size=4, **sizes, **decoder)).eval()
places_of_old = torch.stack(torch.meshgrid(torch.arange(old), torch.arange(old), indexing="ij"), -1).view(-1, 2, 1)
waves = places_of_old * 10000 ** -(torch.arange(size // 4) / (size // 4))
table = torch.cat([waves.sin(), waves.cos()], -1).flatten(1)  # as released: fixed waves of rows and columns
tables = {"encoder": model.vit.embeddings.position_embeddings, "decoder": model.decoder.decoder_pos_embed}
with torch.no_grad():
    for own in tables.values():
        own.copy_(torch.cat([torch.zeros(1, size), table])[None])


def places(table):
    """The nearest old place, (row, column), of each new place, by the cosine of their embeddings."""
    first = normalize(tables["decoder"][0, 1:].detach(), dim=-1)
    nearest = (normalize(table, dim=-1) @ first.T).argmax(-1)
    return torch.stack([nearest // old, nearest % old], -1).view(new, new, 2)


with torch.no_grad():
    tokens = torch.zeros(1, 1 + new * new, size)
    both = {
        "encoder": model.vit.embeddings.interpolate_pos_encoding(tokens, 4 * new, 4 * new)[0, 1:],
        "decoder": model.decoder.interpolate_pos_encoding(tokens)[0, 1:],
    }
    picture = model(torch.randn(1, 3, 4 * new, 4 * new), interpolate_pos_encoding=True)
    plane = tables["decoder"][:, 1:].reshape(1, old, old, size).permute(0, 3, 1, 2)
    plane = interpolate(plane, size=(new, new), mode="bicubic", align_corners=False)[0].flatten(1).T
wanted = (torch.arange(new) + 0.5) * old / new - 0.5
wanted = torch.stack(torch.meshgrid(wanted, wanted, indexing="ij"), -1)
same = torch.equal(tables["encoder"], tables["decoder"])
found = {}
for name, table in both.items():
    place = places(table)
    off = (place - wanted).abs().amax(-1)
    found[name] = dict(
        off=float((table - plane).abs().max() / plane.abs().max()), within=float((off <= 1).double().mean()),
        columns=float((place - wanted)[..., 1].abs().mean()),
    )
    print(name, {key: round(value, 4) for key, value in found[name].items()})
    for row in (10, 11):
        print(f"  row {row}, columns 0, 9, 18, 27 of {new}: nearest of {old}", place[row, ::9].tolist())
print("same tables:", same, "loss of a picture:", round(float(picture.loss), 3), "transformers", transformers.__version__)
right, wrong = found["encoder"], found["decoder"]
sys.exit(not (same and right["off"] < 1e-4 and right["within"] > 0.99 and wrong["off"] > 0.5 and wrong["within"] < 0.4))
PYTHON
