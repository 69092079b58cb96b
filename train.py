"""Trains a model: ``python train.py --config=configs/biformer.py``.

Any field of the config can be overridden (``--config.batch_size=32``). Running the same command with the same
``--workdir`` resumes the run where it stopped.
"""

import datetime
import shlex
import sys
from pathlib import Path

from primitives.garbage import none_collected

with none_collected():
    import jax
    from absl import flags
    from ml_collections import config_flags

    from training import assembly, command, curve, loop, processes, sampling
    from training.workdir import begun

config_flags.DEFINE_config_file(
    "config", None, "A config file and its argument, as in configs/biformer.py:imagenet,variant=tiny."
)
flags.DEFINE_string("workdir", None, "Where the run is kept; default: ./runs/NAME-TIME.")
flags.DEFINE_boolean("extend", False, "Continue a run for another duration than it began with.")
flags.DEFINE_integer("profile", None, "Write a profiler trace of this many steps to the working directory.")


def main() -> None:
    config = command.required("config")
    if flags.FLAGS.profile is not None:
        config.profile = flags.FLAGS.profile
    processes.join(config.distributed)
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]).stem
    if flags.FLAGS.workdir is None and jax.process_count() > 1:
        raise ValueError("several processes need one --workdir, which all of them can reach")
    workdir = Path(flags.FLAGS.workdir or f"runs/{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    task, model = assembly.build(config, run=workdir if begun(workdir) else None)
    record = assembly.record(config, task, model)
    result = loop.train(config, model, task, workdir, extend=flags.FLAGS.extend, record=record)
    if not processes.leads():
        return
    if result.finished:
        if without := curve.draw(workdir, task.monitor):
            print(without)
        print(loop.summary(result, task, workdir))
        if jax.process_count() == 1 and (text := sampling.sample(task, model)):
            print(f"\n{text}")
        print("\nnext:\n" + "\n".join(f"  {line}" for line in loop.following(task, workdir, result)))
        return
    again = [a for a in sys.orig_argv if not a.startswith("--workdir")]
    print(
        f"stopped after step {result.step} of {result.total}; this goes "
        f"on:\n{shlex.join([*again, f'--workdir={workdir}'])}"
    )


if __name__ == "__main__":
    command.run(main)
