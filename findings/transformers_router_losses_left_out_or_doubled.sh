#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): losses of routers, with output_router_logits=True and labels. Expected: their
# coefficients count, as in Mixtral and SwitchTransformers, and each router once. Seen: NLLB-MoE's router_z_loss_coef
# and Llama 4's router_aux_loss_coef are read by nothing: with 1000 in place of 0 the losses are the same, and no router
# is held back by them; Llama 4 returns its router_logits and has no balance at all. JetMoE, which has a router for its
# attention and one for its experts in each layer, returns router_logits of three for each layer, those of the attention
# twice: in the one mean over all of them, which is its loss of balance, the attention's routers weigh two thirds. No
# warning.
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
texts = torch.randint(3, 40, (2, 12), generator=torch.Generator().manual_seed(0))
sizes = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
decoder = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
decoder |= {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, **sizes}
switch = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, **sizes}
switch |= {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_experts": 4}
switch |= {"dropout_rate": 0.0, "decoder_start_token_id": 2}
nllb = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, **sizes}
nllb |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_sparse_step": 1, "decoder_sparse_step": 1}
nllb |= {"num_experts": 4}
llama = {"intermediate_size_mlp": 48, "interleave_moe_layer_step": 1}
cases = {
    "SwitchTransformers": ("ForConditionalGeneration", "Config", switch, "router_z_loss_coef"),
    "NllbMoe": ("ForConditionalGeneration", "Config", nllb, "router_z_loss_coef"),
    "Mixtral": ("ForCausalLM", "Config", decoder, "router_aux_loss_coef"),
    "Llama4": ("ForCausalLM", "TextConfig", {**decoder, **llama}, "router_aux_loss_coef"),
}
found = {}
for name, (head, config, options, option) in cases.items():
    losses = []
    for coefficient in (0.0, 1000.0):
        torch.manual_seed(0)
        model = getattr(t, name + head)(getattr(t, name + config)(**options, **{option: coefficient})).eval()
        out = model(input_ids=texts, labels=texts, output_router_logits=True, use_cache=False)
        logits = out.get("router_logits") or out.get("encoder_router_logits")
        assert logits is not None and getattr(model.config, option) == coefficient
        losses.append(round(float(out.loss), 3))
    found[name] = losses
print("transformers", t.__version__, "losses with a coefficient of 0 and of 1000:", found)
jet = {"hidden_size": 32, "num_hidden_layers": 2, "kv_channels": 8, "num_key_value_heads": 2, "intermediate_size": 48}
torch.manual_seed(0)
model = t.JetMoeForCausalLM(t.JetMoeConfig(**jet, num_local_experts=4, num_experts_per_tok=2, **sizes)).eval()
with torch.no_grad():
    for key, weights in model.named_parameters():
        if weights.ndim >= 2:
            weights.normal_(0, 1.5 * weights.shape[-1] ** -0.5)
routers = {}
for key, module in model.named_modules():
    if key.endswith(".router"):
        module.register_forward_hook(lambda m, given, output, key=key: routers.update({key: output[4]}))
out = model(texts, labels=texts, output_router_logits=True, use_cache=False)
names = [[key[13:] for key, logits in routers.items() if torch.equal(logits, row)] for row in out.router_logits]


def balance(rows):  # Switch Transformer, equations 4 to 6, over all rows at once
    logits = torch.cat(rows)
    chosen = torch.nn.functional.one_hot(logits.topk(2).indices, 4).sum(1).float()
    return 4 * float((chosen.mean(0) * logits.softmax(-1).mean(0)).sum())


losses = {"returned": float(out.aux_loss), "each once": balance(list(routers.values()))}
twice = [logits for key, logits in routers.items() for _ in range(2 if "attention" in key else 1)]
losses["attention twice"] = balance(twice)
print("JetMoE: routers of router_logits:", names, "losses of balance:", {key: round(x, 5) for key, x in losses.items()})
counted = all(losses[1] > losses[0] + 100 for losses in (found["SwitchTransformers"], found["Mixtral"]))
left_out = all(losses[1] == losses[0] for losses in (found["NllbMoe"], found["Llama4"]))
doubled = len(routers) == 4 and sum("attention" in name for (name,) in names) == 4 and len(names) == 6
same = abs(losses["returned"] - losses["attention twice"]) < 1e-5 < 1e-3 < abs(losses["returned"] - losses["each once"])
sys.exit(not (counted and left_out and doubled and same))
PYTHON
