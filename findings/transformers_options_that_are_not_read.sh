#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): options of configurations. Expected: they do what they do in BERT and GPT-2.
# Seen: nothing reads them. SegFormer, GLPN, Perceiver, CvT and BioGPT have norms with PyTorch's 1e-5, whatever
# layer_norm_eps says, and it says 1e-6 or 1e-12: who ports them by their configuration gets other outputs where a
# token's variance is small. MPT's emb_pdrop and resid_pdrop, Phi-3's embd_pdrop and Nemotron-H's hidden_dropout drop
# nothing in training, and MPT's logit_scale, of models of its authors' code that divide their logits, leaves the logits
# as they are.
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
generator = torch.Generator().manual_seed(0)
tokens = torch.randint(3, 40, (2, 16), generator=generator)
pixels = torch.randn(1, 3, 64, 64, generator=generator)
sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
sizes |= {"intermediate_size": 48, "pad_token_id": 0}
mpt = {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 40, "max_seq_len": 64}
gpt = {
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 2,
    "vocab_size": 40,
    "n_positions": 64,
    "resid_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
nemotron = {
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "n_groups": 1,
    "chunk_size": 8,
    "head_dim": 8,
}
nemotron |= {"moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24, "num_key_value_heads": 2}
nemotron |= {name: size for name, size in sizes.items() if name != "num_hidden_layers"}
perceiver = {"num_latents": 8, "d_latents": 32, "d_model": 16, "num_self_attends_per_block": 2}
perceiver |= {"num_self_attention_heads": 4, "num_cross_attention_heads": 4}
inputs = {"inputs": torch.randn(2, 12, 16, generator=generator)}
cases = [  # model, its configuration, inputs, option, two values, in training, is it read
    ("SegformerModel", {}, {"pixel_values": pixels}, "layer_norm_eps", (1e-6, 1.0), False, False),
    ("GLPNModel", {}, {"pixel_values": pixels}, "layer_norm_eps", (1e-6, 1.0), False, False),
    ("PerceiverModel", perceiver, inputs, "layer_norm_eps", (1e-12, 1.0), False, False),
    ("CvtModel", {"embed_dim": [8, 12, 24]}, {"pixel_values": pixels}, "layer_norm_eps", (1e-12, 1.0), False, False),
    ("BioGptModel", sizes, {"input_ids": tokens}, "layer_norm_eps", (1e-12, 1.0), False, False),
    ("BertModel", sizes, {"input_ids": tokens}, "layer_norm_eps", (1e-12, 1.0), False, True),
    ("MptModel", mpt, {"input_ids": tokens}, "emb_pdrop", (0.0, 0.9), True, False),
    ("MptModel", mpt, {"input_ids": tokens}, "resid_pdrop", (0.0, 0.9), True, False),
    ("MptForCausalLM", mpt, {"input_ids": tokens}, "logit_scale", (None, 0.1), False, False),
    ("Phi3Model", {**sizes, "num_key_value_heads": 4}, {"input_ids": tokens}, "embd_pdrop", (0.0, 0.9), True, False),
    ("NemotronHModel", nemotron, {"input_ids": tokens}, "hidden_dropout", (0.0, 0.9), True, False),
    ("GPT2Model", gpt, {"input_ids": tokens}, "embd_pdrop", (0.0, 0.9), True, True),
]
wrong = []
for name, config, given, option, values, training, read in cases:
    outputs = []
    for value in values:
        torch.manual_seed(0)
        model = getattr(t, name)(getattr(t, name).config_class(**config, **{option: value})).train(training)
        assert getattr(model.config, option) == value
        torch.manual_seed(1)
        with torch.no_grad():
            outputs.append(model(**given)[0])
    changed = float((outputs[0] - outputs[1]).abs().max())
    print(
        name, option, values, "in training" if training else "in evaluation", "largest change of the outputs:", changed
    )
    wrong.append((changed > 1e-3) != read or (changed != 0 and not read))
print("transformers", t.__version__)
sys.exit(any(wrong))
PYTHON
