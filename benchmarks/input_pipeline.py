"""Whether training waits for its images: images per second of the folder pipeline, compared with timm's loader and with
a training step of ViT-Ti, in one run.

``python -m benchmarks.input_pipeline`` writes benchmarks/results/<platform>/input_pipeline.json. 192 JPEG files of 500
x 375 pixels (smooth shapes with noise, quality 90, 74 kB each) are read from folders of classes, cropped at random to
224 pixels with bicubic interpolation, flipped and augmented by RandAugment, by two workers: threads here, processes in
timm. Its magnitude is 9 without noise: with that of the published recipe (mstd0.5) timm 1.0.31 posterizes to 0 bits now
and then, which Pillow 13 refuses. Each figure is the best of the rounds, in which the contestants take turns.

    ours, timm     images per second that each delivers in batches while nothing else runs
    step           images per second of a training step of vit_tiny_patch16_224 on one batch in memory: float32,
                   AdamW, mixup and CutMix, as train.py runs it
    fed            the same step on the batches of the pipeline, which shares the cores with it
    waiting        the share of that time in which the step waits for a batch

The target is twice as many images from the pipeline as the step takes.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

MODEL = "vit_tiny_patch16_224"
AUGMENT = "rand-m9-inc1"
FILES, CLASSES, PIXELS = 192, 4, (500, 375)
WORKERS = 2
ASKED = 2.0


def write_images(folder: pathlib.Path) -> None:
    """Writes the files, one folder a class, in train/ and a few in val/."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(FILES):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(PIXELS, Image.Resampling.BICUBIC)
        noisy = np.asarray(coarse, np.float32) + rng.normal(0, 8, (PIXELS[1], PIXELS[0], 1))
        place = folder / ("val" if number < 2 * CLASSES else "train") / f"class_{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
        image.save(place / f"{number}.jpg", quality=90)


def rate(batches: Iterator[Any], size: int, seconds: float) -> float:
    """Images a second of batches that are thrown away, after the first few, in which workers start."""
    for _ in range(2 * WORKERS + 1):
        next(batches)
    start, count = time.perf_counter(), 0
    while (took := time.perf_counter() - start) < seconds:
        next(batches)
        count += size
    return count / took


class Training:
    """A training step on the images of a folder, as train.py makes it, and its batches."""

    def __init__(self, folder: pathlib.Path, batch_size: int):
        import jax
        import jax.numpy as jnp
        from flax import nnx

        import tasks
        import zoo
        from layers.state import flatten
        from training import optimizer as optimizers
        from training.step import Skeleton, initial_state, make_step

        task: Any = tasks.create(
            "classification",
            preprocess=zoo.preprocess(MODEL),
            dataset={"name": "folder", "path": str(folder)},
            augment={"rand_augment": AUGMENT},
            mix={"mixup": 0.8, "cutmix": 1.0},
            label_smoothing=0.1,
        )
        self.examples, self.batch_size = task.examples("train"), batch_size
        model = zoo.create(MODEL, **task.model_options())
        optimizer = optimizers.create(
            model, flatten(model, nnx.Param), {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05}
        )
        step = make_step(
            Skeleton(model), task, optimizer, lambda step: jnp.float32(1e-3), seed=0, accumulate=1, ema=0.0,
            aux_losses={}, sticky=True,
        )  # fmt: skip
        self.state = initial_state(model, optimizer, 0.0)
        self.batch = next(self.batches())
        self.step = jax.jit(step, donate_argnums=0).lower(self.state, self.batch).compile()

    def batches(self, steps: int = 1 << 20) -> Iterator[Any]:
        """Batches without end, two each ahead of their use by two threads."""
        from training.input import train_batches

        made = train_batches(self.examples, range(steps), self.batch_size, seed=0, workers=WORKERS)
        return (batch for _, batch in made)

    def run(self, batch: Any) -> None:
        """One step, to its end."""
        import jax

        self.state, report = self.step(self.state, batch)
        jax.block_until_ready(report)

    def alone(self, steps: int) -> float:
        """Images a second on one batch."""
        self.run(self.batch)
        start = time.perf_counter()
        for _ in range(steps):
            self.run(self.batch)
        return steps * self.batch_size / (time.perf_counter() - start)

    def fed(self, steps: int) -> tuple[float, float]:
        """Images a second on the batches of the pipeline, and the share of the time in which a step waits for one."""
        batches, waited = self.batches(), 0.0
        for _ in range(2):
            self.run(next(batches))
        start = time.perf_counter()
        for _ in range(steps):
            since = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - since
            self.run(batch)
        took = time.perf_counter() - start
        return steps * self.batch_size / took, waited / took


def theirs(folder: pathlib.Path, batch_size: int) -> Iterator[Any]:
    """Batches without end of timm's loader."""
    from tests.references.live import timm  # declares what timm needs of torchvision

    data: Any = importlib.import_module("timm.data")
    assert timm is not None
    loader = data.create_loader(
        data.create_dataset("", str(folder / "train")), (3, 224, 224), batch_size, is_training=True,
        auto_augment=AUGMENT, interpolation="bicubic", num_workers=WORKERS, use_prefetcher=False,
        persistent_workers=True,
    )  # fmt: skip
    while True:
        yield from loader


def measure(folder: pathlib.Path, batch_size: int, seconds: float, steps: int, rounds: int) -> dict[str, Any]:
    """The row."""
    peer = theirs(folder, batch_size)
    next(peer)  # its processes are forked before XLA has threads
    training = Training(folder, batch_size)
    found: dict[str, list[float]] = {"ours": [], "timm": [], "step": [], "fed": [], "waiting": []}
    for _ in range(rounds):
        turns: dict[str, Callable[[], float]] = {
            "ours": lambda: rate(training.batches(), batch_size, seconds),
            "timm": lambda: rate(peer, batch_size, seconds),
            "step": lambda: training.alone(steps),
        }
        for name, turn in turns.items():
            found[name].append(turn())
        fed, waiting = training.fed(steps)
        found["fed"].append(fed)
        found["waiting"].append(waiting)
    best = {name: round(max(found[name]), 1) for name in ("ours", "timm", "step", "fed")}
    return {
        **best,
        "waiting": round(min(found["waiting"]), 3),
        "times_the_step": round(best["ours"] / best["step"], 2),
        "times_timm": round(best["ours"] / best["timm"], 2),
        "asked": ASKED,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=6.0, help="of one measurement of a pipeline")
    parser.add_argument("--steps", type=int, default=5, help="of one measurement of the training step")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=pathlib.Path, help="default benchmarks/results/<platform>/input_pipeline.json")
    args = parser.parse_args()
    import jax

    output = args.output or pathlib.Path(__file__).parent / "results" / jax.default_backend() / "input_pipeline.json"
    with tempfile.TemporaryDirectory() as folder:
        write_images(pathlib.Path(folder))
        row = measure(pathlib.Path(folder), args.batch_size, args.seconds, args.steps, args.rounds)
    packages = ("jax", "pillow", "torch", "timm", "torchvision")
    report = {
        "model": MODEL, "batch_size": args.batch_size, "workers": WORKERS, "images_per_second": row,
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "cores": os.cpu_count(), "load_average_at_end": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
