#!/bin/sh
# transformers 5.23.0: which layers of Kimi Linear have full attention where a configuration does not say.
# Expected: KimiLinearConfig(), whose other defaults are those of moonshotai/Kimi-Linear-48B-A3B-Instruct, has them where that release
# does, whose config.json counts from 1: layers 4, 8, 12, 16, 20, 24 and 27. Seen: 5, 9, 13, 17, 21 and 25, counted so, and none
# at the end: another model of as many layers, with 20 + 7 mixers in the one and 21 + 6 in the other. A model made of the class's
# defaults is not the released one; give linear_attn_config or layer_types. Ends with 0 as long as this is so, with 1 once it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import transformers

full = [4, 8, 12, 16, 20, 24, 27]
given = {"full_attn_layers": full, "kda_layers": [i for i in range(1, 28) if i not in full]}
released = transformers.KimiLinearConfig(linear_attn_config={"head_dim": 128, "num_heads": 32, **given})
default = transformers.KimiLinearConfig()
places = [
    [i + 1 for i, kind in enumerate(config.layer_types) if kind == "full_attention"] for config in (released, default)
]
sizes = {"vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers", "num_experts"}
alike = all(getattr(released, size) == getattr(default, size) for size in sizes)
print("transformers", transformers.__version__, *places, alike)
sys.exit(not (places == [full, [5, 9, 13, 17, 21, 25]] and alike))
PYTHON
