#!/bin/sh
# vit-pytorch 1.26.14, torch 2.13.0 (CPU): models of the package with options that their constructors take. Expected: SepViT(window_size=4) has windows of 4,
# SepViT and NesT have heads of dim_head features, RvT(emb_dropout=0.1) drops embedded patches, and SimpleViT of simple_vit_with_qk_norm gives num_classes
# logits. Seen: none is read. SepViT's windows are 7 wide and its heads 32, whatever is asked; a NesT with dim_head=8 has as many parameters as one with 64;
# RvT has no such dropout; and the "logits" are the dim features of a last norm, which cross_entropy takes without an error where there are at least as many
# features as classes. AdaptiveTokenSampling draws in eval mode as well, so that ats_vit's logits are others at each call.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy einops==0.8.2
"$folder/venv/bin/pip" install --quiet --no-deps vit-pytorch==1.26.14
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import importlib.util
import sys

import torch

torch.manual_seed(0)
image = torch.randn(1, 3, 64, 64)
sizes = {"image_size": 64, "patch_size": 16, "num_classes": 10, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 32}


def model(module, name, **options):
    """A model from its file, since the package as a whole needs torchvision too."""
    file = importlib.metadata.distribution("vit-pytorch").locate_file(f"vit_pytorch/{module}.py")
    spec = importlib.util.spec_from_file_location(module, file)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return getattr(loaded, name)(**options).eval()


def parameters(model):
    return sum(p.numel() for p in model.parameters())


sep = {"num_classes": 10, "dim": 16, "depth": (1, 1), "heads": (1, 2)}
nest = {"image_size": 64, "patch_size": 4, "dim": 32, "heads": 2, "num_hierarchies": 3, "block_repeats": (1, 1, 1), "num_classes": 10}
windows = model("sep_vit", "SepViT", **sep, window_size=4)
rvt = model("rvt", "RvT", **sizes, emb_dropout=0.1)
sampling = model("ats_vit", "ViT", **sizes, max_tokens_per_depth=(8, 4))
with torch.no_grad():
    calls = [sampling(image) for _ in range(2)]
    found = {
        "SepViT's windows": sorted({m.window_size for m in windows.modules() if hasattr(m, "window_size")}),
        "SepViT by dim_head": [parameters(model("sep_vit", "SepViT", **sep, dim_head=size)) for size in (8, 64)],
        "NesT by dim_head": [parameters(model("nest", "NesT", **nest, dim_head=size)) for size in (8, 64)],
        "RvT's dropouts": sorted({m.p for m in rvt.modules() if isinstance(m, torch.nn.Dropout)}),
        "logits": tuple(model("simple_vit_with_qk_norm", "SimpleViT", **sizes)(image).shape),
        "ats_vit, two calls apart": float((calls[0] - calls[1]).abs().max() / calls[0].abs().max()),
    }
print("vit-pytorch", importlib.metadata.version("vit-pytorch"), found)
same = all(len(set(found[f"{name} by dim_head"])) == 1 for name in ("SepViT", "NesT"))
rest = found["SepViT's windows"] == [7] and found["RvT's dropouts"] == [0.0] and found["logits"] == (1, 32)
sys.exit(not (same and rest and found["ats_vit, two calls apart"] > 0.01))
PYTHON
