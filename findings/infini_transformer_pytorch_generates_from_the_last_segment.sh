#!/bin/sh
# infini-transformer-pytorch 0.2.1, torch 2.13.0 (CPU): InfiniTransformerWrapper.generate with a prompt longer than segment_length, greedy. Expected: the
# texts that the model's own logits give when it reads the prompt segment by segment with its compressive memory, as in the wrapper's loss. Seen: so for
# prompts of at most one segment. Of longer ones all segments but the last are dropped: generation starts with an empty memory, and two prompts of 40 tokens
# that differ in their first 32 are continued alike. No error or warning; what the memory is for is not used.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy infini-transformer-pytorch==0.2.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import os
import sys

os.environ["TQDM_DISABLE"] = "1"
import torch
from infini_transformer_pytorch import InfiniTransformer, InfiniTransformerWrapper

torch.manual_seed(0)
model = InfiniTransformer(num_tokens=50, dim=64, depth=2, dim_head=16, heads=4).eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "head_gates" in name:  # half of each output from the memory, as training may set it
            parameter.zero_()
wrapper = InfiniTransformerWrapper(model, segment_length=16)


def last_logits(text):
    memories = None
    for segment in text.split(16, dim=1):
        logits, _, memories = model(segment, past_memories=memories, return_new_memories=True)
    return logits[:, -1]


def expected(prompt, tokens):
    text = prompt
    for _ in range(tokens):
        text = torch.cat((text, last_logits(text).argmax(-1, keepdim=True)), dim=1)
    return text[:, prompt.shape[1] :]


def generated(prompt, tokens):
    options = {"temperature": 1e-10, "filter_fn": lambda logits, **_: logits, "filter_kwargs": {}}
    return wrapper.generate(seq_len=prompt.shape[1] + tokens, prompt=prompt, **options)


found = {}
with torch.no_grad():
    for length in (10, 16, 40):
        prompt = torch.randint(0, 50, (4, length))
        found[length] = round(float((generated(prompt, 16) == expected(prompt, 16)).float().mean()), 2)
    other = torch.cat((torch.randint(0, 50, (4, 32)), prompt[:, 32:]), dim=1)
    found["generated alike with another start"] = bool((generated(prompt, 16) == generated(other, 16)).all())
    change = (last_logits(prompt) - last_logits(other)).abs().max() / last_logits(prompt).abs().max()
    found["change of the logits"] = round(float(change), 3)
print("infini-transformer-pytorch", importlib.metadata.version("infini-transformer-pytorch"), "tokens as expected, by the prompt's length:", found)
sys.exit(not (found[10] == found[16] == 1 and found[40] < 0.9 and found["generated alike with another start"] and found["change of the logits"] > 0.02))
PYTHON
