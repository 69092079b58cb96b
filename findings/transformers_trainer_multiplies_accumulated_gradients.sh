#!/bin/sh
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0 (CPU): Trainer with gradient_accumulation_steps=4 and 2 rows a step,
# beside 8 rows in one step. Expected: one update of the weights and one loss in the log, as LlamaForCausalLM gives. Seen: with
# BERT (classification and masked tokens), T5, and a Llama that predicts a number (num_labels=1), gradients and the loss in the
# log are 4 times as large. The Trainer takes a model whose forward has **kwargs for one that divides its loss by
# num_items_in_batch, and does not divide; these models take the mean of each small batch whatever is asked. Adam hides it in
# part; SGD's rate, clipping by norm, and the logged loss depend on the number of steps.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.23.0 accelerate==1.15.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
import transformers as t

t.logging.set_verbosity_error()
both = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "pad_token_id": 0}
bert = t.BertConfig(**both, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=32)
t5 = t.T5Config(vocab_size=40, d_model=32, d_ff=32, d_kv=8, num_layers=1, num_heads=2, dropout_rate=0.0, decoder_start_token_id=0)
generator = torch.Generator().manual_seed(0)
tokens = torch.randint(3, 40, (8, 12), generator=generator)
models = {
    "BertForSequenceClassification": (bert, torch.arange(8) % 2),
    "BertForMaskedLM": (bert, tokens),
    "T5ForConditionalGeneration": (t5, tokens),
    "LlamaForSequenceClassification": (t.LlamaConfig(**both, num_labels=1), torch.randn(8, generator=generator)),
    "LlamaForCausalLM": (t.LlamaConfig(**both), tokens),
}
found = {}
for name, (config, labels) in models.items():
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": label} for row, label in zip(tokens, labels)]
    seen = []
    for steps in (1, 4):
        torch.manual_seed(0)
        model = getattr(t, name)(config)
        start = torch.cat([p.detach().flatten() for p in model.parameters()])
        arguments = t.TrainingArguments(
            "out", per_device_train_batch_size=8 // steps, gradient_accumulation_steps=steps, max_steps=1, learning_rate=0.01, optim="sgd",
            max_grad_norm=0.0, lr_scheduler_type="constant", report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", logging_steps=1,
        )
        trainer = t.Trainer(model, arguments, train_dataset=rows)
        trainer.remove_callback(t.PrinterCallback)
        trainer.train()
        moved = float((torch.cat([p.detach().flatten() for p in model.parameters()]) - start).norm())
        seen.append((moved, trainer.state.log_history[0]["loss"]))
    found[name] = [round(b / a, 3) for a, b in zip(*seen)]
print("transformers", t.__version__, "4 steps to 1, (update, logged loss):", found)
right = found.pop("LlamaForCausalLM")
sys.exit(not (max(abs(r - 1) for r in right) < 0.01 and all(abs(r - 4) < 0.04 for pair in found.values() for r in pair)))
PYTHON
