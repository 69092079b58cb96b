#!/bin/sh
# keras 3.15.1, jax 0.10.2 (CPU): an optimizer with use_ema=True and gradient_accumulation_steps=4. Expected: the average of the
# weights moves once for each update, to the new weights, as with a batch four times as large and no accumulation; the
# documentation says that the average looks at accumulated iterations. Seen: it moves after each microbatch, three times to the
# old weights and once to the new ones. A momentum of 0.99 acts as 0.99**4, about 0.96: the average of 100 updates becomes one
# of 25, of which the newest has a quarter of its share. The weights themselves are those of the larger batch, so that nothing
# shows until the average takes their place, as it does at the end of fit(). No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Python 3.11 or later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import os
import sys

os.environ["KERAS_BACKEND"] = "jax"
import jax
import keras
import numpy as np

gradients = np.random.default_rng(0).normal(size=20) + 0.5


def train(steps):
    """The weight and its average after each update, by gradients that come in steps microbatches each."""
    weight = keras.Variable(np.zeros(1, "float32"))
    more = {"gradient_accumulation_steps": steps} if steps > 1 else {}
    optimizer = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.99, **more)
    optimizer.build([weight])
    rows = []
    for gradient in gradients:
        for _ in range(steps):
            optimizer.apply([np.full(1, gradient, "float32")], [weight])
        current = float(weight.value[0])
        optimizer.finalize_variable_values([weight])
        rows.append((current, float(weight.value[0])))
        weight.assign(np.full(1, current, "float32"))
    return np.array(rows)


def averages(weights, olds):
    """The average after each weight, with a momentum of 0.99, moved olds times to the weight before it and once to it."""
    average = weights[0]
    rows = [average]
    for before, weight in zip(weights, weights[1:], strict=False):
        for seen in [before] * olds + [weight]:
            average = 0.99 * average + 0.01 * seen
        rows.append(average)
    return np.array(rows)


whole, parts = train(1), train(4)
found = {"weights apart": float(np.abs(whole[:, 0] - parts[:, 0]).max()), "last average": float(whole[-1, 1])}
found["last average with microbatches"] = float(parts[-1, 1])
for name, rows in {"one batch": whole, "four microbatches": parts}.items():
    found[name] = {olds: float(np.abs(rows[:, 1] - averages(rows[:, 0], olds)).max()) for olds in (0, 3)}
print("keras", keras.__version__, "jax", jax.__version__, "from averages of so many old weights for each new one:", found)
right = found["weights apart"] < 1e-4 and found["one batch"][0] < 1e-4 < 0.1 < found["one batch"][3]
sys.exit(not (right and found["four microbatches"][3] < 1e-4 < 0.1 < found["four microbatches"][0]))
PYTHON
