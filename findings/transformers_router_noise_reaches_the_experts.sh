#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): router_jitter_noise of SwitchTransformers, Mixtral and MiniMax, "amount of
# noise to add to the router". Expected: in training the router alone reads noisy tokens, as in the papers (Switch
# Transformer, section 2.4, and its code), and experts read them as they are. Seen: the noise is multiplied into the
# tensor in place, and experts read the noisy tokens too: with 0.1 all numbers are up to 10 % off. SwitchTransformers in
# bfloat16 copies them to float32 for the router first and does it right, so that the same model trains with noise on
# its experts in float32 and without it in bfloat16. Without the option, or in evaluation, all are equal.
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
tokens = torch.randint(3, 40, (2, 12), generator=torch.Generator().manual_seed(0))
sizes = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
sizes |= {"intermediate_size": 48, "num_local_experts": 4}
switch = {
    "vocab_size": 40,
    "d_model": 32,
    "d_ff": 48,
    "d_kv": 8,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
}
switch |= {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_experts": 4, "dropout_rate": 0.0}
layers = {"layer_types": ["full_attention", "full_attention"], "head_dim": 8}
models = {
    "SwitchTransformers": (t.SwitchTransformersModel, t.SwitchTransformersConfig, switch),
    "Mixtral": (t.MixtralModel, t.MixtralConfig, sizes),
    "MiniMax": (t.MiniMaxModel, t.MiniMaxConfig, {**sizes, **layers}),
}
found = {}
for name, (kind, config, options) in models.items():
    for dtype in (torch.float32, torch.bfloat16):
        for noise, training in ((0.1, True), (0.0, True), (0.1, False)):
            torch.manual_seed(0)
            model = kind(config(**options, router_jitter_noise=noise)).to(dtype).train(training)
            apart, kept = [], {}

            def keep(module, given, kept=kept):
                kept[id(module)] = given[0].detach().clone().flatten().float()

            def compare(module, given, block, kept=kept, apart=apart):
                want = kept[id(block)]
                apart.append(float(((given[0].flatten().float() - want) / want.abs().clamp(min=1e-6)).abs().max()))

            for block in model.modules():
                if hasattr(block, "experts") and hasattr(block, "forward"):
                    block.register_forward_pre_hook(keep)
                    block.experts.register_forward_pre_hook(lambda m, given, block=block: compare(m, given, block))
            with torch.no_grad():
                model(input_ids=tokens, **({"decoder_input_ids": tokens} if name.startswith("Switch") else {}))
            assert len(apart) == 2
            key = name, str(dtype)[6:], noise, "training" if training else "evaluation"
            found[key] = round(max(apart), 4)
print("transformers", t.__version__, "largest relative change of what experts read:")
for key, change in found.items():
    print(*key, change)
noisy = {key: 0.05 < change < 0.15 for key, change in found.items()}
for key, change in found.items():
    exact = key[0] == "SwitchTransformers" and key[1] == "bfloat16"
    if noisy[key] != (key[2] > 0 and key[3] == "training" and not exact) or not (noisy[key] or change == 0):
        sys.exit(1)
PYTHON
