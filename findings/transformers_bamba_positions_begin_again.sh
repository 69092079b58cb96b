#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): Bamba, and MiniMax with a linear layer first as in MiniMax-Text-01, read
# token by token with the past_key_values they returned, without position_ids, which are optional. Expected: the logits
# of the whole text, as GraniteMoeHybrid, FalconH1 and Qwen3-Next give; where position_ids are missing the number of
# cached tokens counts. Seen: every call rotates its keys and queries from position 0 again. Bamba does not ask its
# cache, and MiniMax asks it for the length of layer 0, which has none. Logits are off by a third of the largest and
# more. No error, no warning. With position_ids given both are right.
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
sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
sizes |= {"num_key_value_heads": 2, "intermediate_size": 48}
mamba = {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_chunk_size": 8}
linear_first = {"layer_types": ["linear_attention", "full_attention"]}
configs = {
    "Bamba": t.BambaConfig(**sizes, **mamba, attn_layer_indices=[1]),
    "MiniMax": t.MiniMaxConfig(**sizes, **linear_first, num_local_experts=4, head_dim=8),
    "GraniteMoeHybrid": t.GraniteMoeHybridConfig(
        **sizes,
        **mamba,
        **linear_first,
        num_local_experts=4,
        shared_intermediate_size=24,
        position_embedding_type="rope",
    ),
    "FalconH1": t.FalconH1Config(**sizes, **mamba, mamba_d_ssm=64),
}
tokens = torch.randint(3, 40, (2, 24), generator=torch.Generator().manual_seed(0))
found = {}
for name, config in configs.items():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = getattr(t, name + "ForCausalLM")(config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim > 1 and "conv" not in path:
                parameter.normal_(0, 1 if "embed" in path else 1.2 * parameter.shape[-1] ** -0.5, generator=generator)
        whole = model(tokens, use_cache=False).logits
        for given in (False, True):
            cache, rows = None, []
            for place, token in enumerate(tokens.T):
                positions = {"position_ids": torch.full((2, 1), place)} if given else {}
                read = model(token[:, None], past_key_values=cache, use_cache=True, **positions)
                cache = read.past_key_values
                rows.append(read.logits)
            found[name, given] = float((torch.cat(rows, 1) - whole).abs().max() / whole.abs().max())
print(
    "transformers",
    t.__version__,
    "(model, position_ids given): largest relative difference from the whole text:",
    found,
)
wrong = [found.pop((name, False)) for name in ("Bamba", "MiniMax")]
sys.exit(not (min(wrong) > 0.1 and max(found.values()) < 1e-4))
PYTHON
