#!/bin/sh
# fla-core 0.6.0, torch 2.13.0 (CPU): naive_recurrent_abc, attention with bounded memory (arXiv:2110.02488), the reference of chunk_abc, and
# naive_recurrent_gsa without g, which is the same. A text is read in two parts, the second with initial_state of the first's final state. Expected: the
# outputs of the whole text, as with g. Seen: each slot is a mean of what was written, weighted by exp(s), but the state has the mean alone and not the sum of
# its weights: it counts fully and what comes is normalized by itself and added. Of values that are all 1 the outputs are 2 after the first token of the
# second part and above 1 for long, where they are 1 in the whole text. ABCAttention hands its cache on in this way.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy einops==0.8.2
"$folder/venv/bin/pip" install --quiet --no-deps fla-core==0.6.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import importlib.util
import sys

import torch


def load(name):  # importing the package itself needs Triton
    file = str(importlib.metadata.distribution("fla-core").locate_file(f"fla/ops/{name}/naive.py"))
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, f"naive_recurrent_{name}")


torch.manual_seed(0)
heads_first = torch.randn(2, 1, 2, 16, 8).unbind(0)
slots, gates = torch.randn(1, 2, 16, 3), torch.nn.functional.logsigmoid(torch.randn(1, 2, 16, 3))
found = {}
for name in ("abc", "gsa"):
    function, turn = load(name), (lambda x: x) if name == "abc" else (lambda x: x.transpose(1, 2))
    for kind, v in (("random", torch.randn(1, 2, 16, 4)), ("ones", torch.ones(1, 2, 16, 4))):
        for gated in (False, True):
            def read(start, stop, **options):
                tensors = [turn(x[:, :, start:stop]) for x in (*heads_first, v, slots)]
                gate = {"g": turn(gates[:, :, start:stop])} if gated else {}
                y, state = function(*tensors, **gate, output_final_state=True, **options)
                return turn(y), state

            whole, (_, state) = read(0, 16)[0], read(0, 8)
            second = read(8, 16, initial_state=state)[0]
            error = (second - whole[:, :, 8:]).abs().max() / whole.abs().max()
            found[name, kind, "gated" if gated else "no gate"] = round(float(error), 4), round(float(second[0, 0, 0, 0]), 4)
print("fla-core", importlib.metadata.version("fla-core"), "relative error of the second part, its first output:", found)
right = all(error < 1e-4 for (_, _, gate), (error, _) in found.items() if gate == "gated")
wrong = all(found[name, kind, "no gate"][0] > 0.5 for name in ("abc", "gsa") for kind in ("random", "ones"))
sys.exit(not (right and wrong and all(found[name, "ones", "no gate"][1] == 2 for name in ("abc", "gsa"))))
PYTHON
