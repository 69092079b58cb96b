#!/bin/sh
# recurrent-memory-transformer-pytorch 0.7.0, torch 2.13.0 (CPU): use_xl_memories=True, its default, and
# enhanced_xl_recurrence=True, in which a layer reads the past keys of the layer above (ERNIE-Doc). Expected: the
# wrapper, which is for texts of many segments, reads them in each segment after the first, as it does when it
# generates. Seen: it makes the keys of each segment and reads none: its logits and losses, in training and evaluation,
# are those of segments with memory tokens alone, so that what it generates comes from a model with keys that it was
# never trained with. enhanced_xl_recurrence changes nothing at all, since the order is changed once it was read. And
# labels given to the wrapper have no effect: the loss is always that of the next token. No error, no warning.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 einops==0.8.2 hyper-connections==0.4.11 \
    packaging==25.0 recurrent-memory-transformer-pytorch==0.7.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer, RecurrentMemoryTransformerWrapper

torch.set_grad_enabled(False)
size = 8


def make(**options):
    torch.manual_seed(0)
    return RecurrentMemoryTransformer(
        dim=32, num_tokens=32, depth=3, num_memory_tokens=2, seq_len=size, dim_head=16, heads=2, **options
    ).eval()


def apart(a, b):
    return float((a - b).abs().max() / b.std())


text = torch.randint(32, (1, 2 * size), generator=torch.Generator().manual_seed(1))
first, second = text.split(size, 1)
model = make()
_, memories, keys = model(first)
read = {"with past keys": model(second, memories, xl_memories=keys)[0], "without": model(second, memories)[0]}
wrapper = RecurrentMemoryTransformerWrapper(model)
logits = wrapper(text)[0][:, size:]
found = {name: apart(logits, want) for name, want in read.items()}
print("wrapper, second segment, deviations from the model", {name: round(value, 4) for name, value in found.items()})

given = []
model.register_forward_pre_hook(
    lambda module, inputs, named: given.append(named.get("xl_memories") is not None), with_kwargs=True
)
wrapper.generate(text, length=2 * size + 1)
generating, given[:] = list(given), []
wrapper(text)
reading = list(given)
print("past keys given to the model, segment by segment: generating", generating, "in forward", reading)

enhanced = make(enhanced_xl_recurrence=True)
shifted = model(second, memories, xl_memories=[*keys[1:], keys[0]])[0]
option = enhanced(second, memories, xl_memories=keys)[0]
found["option"] = apart(option, read["with past keys"]), apart(shifted, read["with past keys"])
print(f"enhanced_xl_recurrence changes {found['option'][0]:.1e}, by hand {found['option'][1]:.2f} deviations")

losses = [float(wrapper(text, labels=labels, return_loss=True)[0]) for labels in (None, torch.zeros_like(text))]
print("loss without labels and with labels of 0:", losses)
print("recurrent-memory-transformer-pytorch", importlib.metadata.version("recurrent-memory-transformer-pytorch"))
held = generating == [False, True] and not any(reading) and losses[0] == losses[1]
sys.exit(not (held and found["without"] < 1e-5 < 0.1 < found["with past keys"]
              and found["option"][0] == 0 < 0.05 < found["option"][1]))
PYTHON
