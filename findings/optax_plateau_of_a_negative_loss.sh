#!/bin/sh
# optax 0.2.8, jax 0.10.2, torch 2.13.0, keras 3.15.1 (CPU): a rate that falls when a loss has stopped improving, for a
# loss below 0, as log densities of flows and variational bounds have it: optax.contrib.reduce_on_plateau and torch
# ReduceLROnPlateau with their defaults. Expected: a loss that stays at -5 for 100 epochs has not improved, and the rate
# falls, as for one that stays at 5. Seen: it never falls. What is less than (1 - 1e-4) times the best is an
# improvement, and below 0 that is more than the best: -5 is better than -4.9995, and a loss that slowly rises from -5
# to -4.9 counts as improving all the way. Keras, whose min_delta is subtracted, is right, and so are optax with
# rtol=0.0, atol=1e-4 and PyTorch with threshold_mode="abs".
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later; downloads PyTorch into a
# temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 torch==2.13.0 numpy keras==3.15.1
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import os
import sys

os.environ["KERAS_BACKEND"] = "jax"
import jax
import jax.numpy as jnp
import keras
import optax
import torch

losses = {
    "stays at 5": [5.0] * 100,
    "stays at -5": [-5.0] * 100,
    "rises from -5": [-5.0 + 0.0004 * epoch for epoch in range(100)],
    "falls from -5": [-5.0 - 0.01 * epoch for epoch in range(100)],
}


def of_optax(values, **options):
    tx = optax.contrib.reduce_on_plateau(patience=10, **options)
    state = tx.init(jnp.zeros(1))
    for value in values:
        _, state = tx.update(jnp.ones(1), state, value=value)
    return float(state.scale)


def of_torch(values, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=10, **options)
    for value in values:
        scheduler.step(value)
    return optimizer.param_groups[0]["lr"]


def of_keras(values):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(1.0))
    callback = keras.callbacks.ReduceLROnPlateau("loss", patience=10, mode="min")
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {"loss": value})
    return float(model.optimizer.learning_rate)


makers = {
    "optax": of_optax,
    "torch": of_torch,
    "optax, absolute": lambda values: of_optax(values, rtol=0.0, atol=1e-4),
    "torch, absolute": lambda values: of_torch(values, threshold_mode="abs"),
    "keras": of_keras,
}
found = {name: {kind: float(f"{make(v):.3g}") for kind, v in losses.items()} for name, make in makers.items()}
print("optax", optax.__version__, "torch", torch.__version__, "keras", keras.__version__, "jax", jax.__version__)
for name, rates in found.items():
    print(name, "rate after 100 epochs:", rates)
kept = {name: [rate == 1.0 for rate in rates.values()] for name, rates in found.items()}
wrong = kept.pop("optax") == kept.pop("torch") == [False, True, True, True]
sys.exit(not (wrong and all(k == [False, False, False, True] for k in kept.values())))
PYTHON
