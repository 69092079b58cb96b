#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): NllbMoeForConditionalGeneration, the class of NLLB-200's mixture of 128
# experts, whose router gives every token a first and a second expert. Expected: a sparse layer is the sum of these two
# experts' outputs, weighed by the router, and all experts of a layer count for a batch that is routed to all of them,
# as in SwitchTransformers, in the same test. Seen: experts 0 and 1 do all the work. The mask of the first expert, which
# is 0 or 1, is read as the number of an expert: every token's first expert is expert 1 and its second expert 0, with
# the weights of those that the router chose. All others may be any numbers without a change of the logits, and get no
# gradient, so that 126 of 128 experts of a layer are never run, in training and in evaluation. No error, no warning;
# the router's logits and its balance look right.
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
texts = torch.randint(3, 40, (4, 12), generator=torch.Generator().manual_seed(0))
nllb = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
nllb |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_sparse_step": 1, "decoder_sparse_step": 1}
nllb |= {"dropout": 0.0, "attention_dropout": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
nllb |= {"moe_token_dropout": 0.0}
switch = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
switch |= {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "dropout_rate": 0.0}
both = {"vocab_size": 40, "num_experts": 4, "pad_token_id": 0, "decoder_start_token_id": 2}
models = {
    "NllbMoe": t.NllbMoeForConditionalGeneration(t.NllbMoeConfig(**nllb, **both)),
    "SwitchTransformers": t.SwitchTransformersForConditionalGeneration(t.SwitchTransformersConfig(**switch, **both)),
}
found = {}
for name, model in models.items():
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, weights in model.named_parameters():
            if weights.ndim == 2 and "embed" not in key:
                weights.normal_(0, weights.shape[1] ** -0.5, generator=generator)
    layers = [module for module in model.modules() if hasattr(module, "experts") and hasattr(module, "router")]
    routed, kept = [], []
    for layer in layers:
        layer.router.register_forward_hook(lambda module, given, output: routed.append([o.detach() for o in output]))
        layer.register_forward_hook(lambda module, given, output: kept.append((given[0].detach(), output.detach())))
    model.train()(input_ids=texts, labels=texts).loss.backward()
    experts = [[layer.experts[f"expert_{e}"] for layer in layers] for e in range(4)]
    trained = [any(w.grad is not None for expert in pair for w in expert.parameters()) for pair in experts]
    model.eval()
    del routed[:], kept[:]
    with torch.no_grad():
        before = model(input_ids=texts, decoder_input_ids=texts).logits
        chosen = [(row[2].reshape(-1, 4).argmax(-1)[:, None] == torch.arange(4)).sum(0).tolist() for row in routed]
        if name == "NllbMoe":
            sums, swapped = [], []
            for layer, (first, weights, _), (x, output) in zip(layers, list(routed), list(kept)):
                each = torch.stack([layer.experts[f"expert_{e}"](x.reshape(-1, 32)) for e in range(4)], 1)
                first = first.bool()
                want = (weights[..., None] * each).sum(1)
                got = (weights * first).sum(1)[:, None] * each[:, 1] + (weights * ~first).sum(1)[:, None] * each[:, 0]
                scale = want.abs().max()
                sums.append(round(float((output.reshape(-1, 32) - want).abs().max() / scale), 3))
                swapped.append(float((output.reshape(-1, 32) - got).abs().max() / scale))
        changes = []
        for pair in experts:
            for weights in (w for expert in pair for w in expert.parameters()):
                weights.mul_(4)
            after = model(input_ids=texts, decoder_input_ids=texts).logits
            for weights in (w for expert in pair for w in expert.parameters()):
                weights.div_(4)
            changes.append(round(float((after - before).abs().max() / before.abs().max()), 4))
    found[name] = trained, changes
    print("transformers", t.__version__, name, "tokens by first expert, encoder and decoder:", chosen)
    print("experts with gradients:", trained, "change of the logits by four times an expert's weights:", changes)
    assert min(map(sum, zip(*chosen))) > 0, "every expert has to be chosen somewhere"
print("NllbMoe's layers apart from the sum of chosen experts:", sums, "from that of experts 1 and 0:", swapped)
used = found["SwitchTransformers"]
unused = found["NllbMoe"]
right = all(used[0]) and min(used[1]) > 0.01
wrong = unused[0] == [True, True, False, False] and min(unused[1][:2]) > 0.01 and max(unused[1][2:]) < 1e-5
sys.exit(not (right and wrong and min(sums) > 0.1 and max(swapped) < 1e-5))
PYTHON
