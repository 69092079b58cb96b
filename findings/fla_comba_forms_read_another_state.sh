#!/bin/sh
# fla-core 0.6.0, torch 2.13.0 (CPU): the two PyTorch references of Comba in fla.ops.comba.naive, token by token and in
# chunks, which tests of kernels are compared with. Expected: one function, as the two references of the gated delta
# rule in the same package are to rounding. Seen: naive_recurrent_comba reads the state with p after it has decayed by
# this token's gate, naive_chunk_comba before: outputs differ by 5 % for gates of 0.9 to 1, and agree to
# rounding only with gates of 1, or with p multiplied by exp(g) for the one in chunks. Both have default arguments, and
# the order of beta and g differs too, so that the positional arguments of one exchange them in the other. No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 einops==0.8.2
"$folder/venv/bin/pip" install --quiet --no-deps --target="$folder/fla" fla-core==0.6.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.util
import inspect
import sys

import torch


def module(path):
    """One file, without the package, which asks for kernels."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), f"fla/fla/ops/{path}/naive.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def apart(one, other):
    return float((one - other).abs().max() / other.abs().max())


torch.manual_seed(0)
q, k, p = (torch.nn.functional.normalize(torch.randn(1, 128, 2, 16), dim=-1) for _ in range(3))
v = torch.randn(1, 128, 2, 16)
beta, g = torch.rand(1, 128, 2), -0.1 * torch.rand(1, 128, 2)
comba, gated = module("comba"), module("gated_delta_rule")


def both(p_of_chunks, g):
    each = comba.naive_recurrent_comba(q=q, k=k, v=v, p=p, beta=beta, g=g)[0]
    return apart(comba.naive_chunk_comba(q=q, k=k, v=v, p=p_of_chunks, beta=beta, g=g)[0], each)


rule = apart(
    gated.naive_chunk_gated_delta_rule(q=q, k=k, v=v, g=g, beta=beta)[0],
    gated.naive_recurrent_gated_delta_rule(q=q, k=k, v=v, beta=beta, g=g)[0],
)
seen = both(p, g)
without, decayed = both(p, torch.zeros_like(g)), both(p * g.exp()[..., None], g)
names = [
    [name for name in inspect.signature(form).parameters if name in ("beta", "g")]
    for form in (comba.naive_recurrent_comba, comba.naive_chunk_comba)
]
print(f"gated delta rule {rule:.1e}, Comba {seen:.1e}, with gates of 1 {without:.1e}, with p decayed {decayed:.1e}")
print("order of arguments", names)
as_seen = rule < 1e-4 and seen > 0.02 and without < 1e-4 and decayed < 1e-4 and names == [["beta", "g"], ["g", "beta"]]
sys.exit(0 if as_seen else 1)
PYTHON
