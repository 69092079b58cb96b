#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): the auxiliary loss of Mixtral, and of OLMoE, Qwen2-MoE and others with the
# same function, "as in Switch Transformer", equations 4 to 6, which are of one layer and added up over layers.
# Expected: a layer that sends all tokens to the same experts is penalized. Seen: counts and probabilities of all layers
# are added first, expert 0 of one layer to expert 0 of the next, which have nothing to do with each other: where layer
# 0 uses experts 0 and 1 alone and layer 1 experts 2 and 3, the loss is that of perfect balance, 2, and no router has a
# gradient, while each layer by itself has 4 and one. Called with one layer at a time the function is right.
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
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func as olmoe
from transformers.models.qwen2_moe.modeling_qwen2_moe import load_balancing_loss_func as qwen

experts, top = 4, 2


def loss_and_slope(function, layers):
    logits = [layer.clone().requires_grad_() for layer in layers]
    loss = function(tuple(logits), experts, top)
    slopes = torch.autograd.grad(loss, logits)
    return round(float(loss), 3), round(max(float(slope.sum(0).abs().max()) for slope in slopes), 6)


def layer(*pairs):
    """Logits of 256 tokens that go to the pairs of experts in turn."""
    logits = torch.full((256, experts), -2.0)
    for i, pair in enumerate(pairs):
        logits[i :: len(pairs), list(pair)] = 2.0
    return logits


cases = {
    "even": [layer((0, 1), (2, 3)), layer((0, 1), (2, 3))],
    "the same two experts": [layer((0, 1)), layer((0, 1))],
    "two experts, other two in layer 1": [layer((0, 1)), layer((2, 3))],
}
found = {}
for name, layers in cases.items():
    single = [loss_and_slope(load_balancing_loss_func, [x]) for x in layers]
    found[name] = single, [loss_and_slope(function, layers) for function in (load_balancing_loss_func, olmoe, qwen)]
print("transformers", t.__version__, "(loss, largest slope of an expert's logits):")
for name, (single, whole) in found.items():
    print(name, "| by layer:", single, "| of both, Mixtral, OLMoE, Qwen2-MoE:", whole)
sizes = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
torch.manual_seed(0)
model = t.MixtralForCausalLM(t.MixtralConfig(**sizes, num_hidden_layers=2, num_local_experts=4, initializer_range=0.5))
tokens = torch.randint(3, 40, (4, 64), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    read = model.eval()(tokens, output_router_logits=True, use_cache=False)
    mean = sum(load_balancing_loss_func((x,), experts, top) for x in read.router_logits) / 2
    of_all = load_balancing_loss_func(read.router_logits, experts, top)
print("of a model:", float(read.aux_loss), "of all layers as one:", float(of_all), "mean of its layers:", float(mean))
even, same, other = found.values()
right = all(loss == 2 and slope < 1e-5 for loss, slope in (*even[0], *even[1]))
right = right and all(loss > 3.5 and slope > 0.01 for loss, slope in (*same[0], *same[1], *other[0]))
wrong = all(loss == 2 and slope < 1e-5 for loss, slope in other[1])
sys.exit(not (right and wrong and abs(read.aux_loss - of_all) < 1e-6 and mean - of_all > 1e-3))
PYTHON
