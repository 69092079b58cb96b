"""Evaluates a model: ``python eval.py --workdir=runs/NAME``, or ``--config=configs/NAME.py --weights=FILE``.

Classes are matched by name with those of the run; unknown ones are refused. ``--data=DIR`` is where the run's data are
now. The last line on standard output is one JSON object: model, dataset, split, examples and the figures.
"""

import json
from pathlib import Path

from primitives.garbage import none_collected

with none_collected():
    import jax
    from absl import flags
    from ml_collections import config_flags

    from training import assembly, command, evaluation
    from training.workdir import read_config

config_flags.DEFINE_config_file("config", None, "A config file and its argument, for --weights.")
flags.DEFINE_string("workdir", None, "A run of train.py.")
flags.DEFINE_string("checkpoint", "last", 'Which checkpoint of the run: "last", "best" or a step.')
flags.DEFINE_string("weights", None, "A file or name of weights, in place of a run.")
flags.DEFINE_string("data", None, "A folder or file of data, in place of the one that the run was trained on.")
flags.DEFINE_string("split", None, "The split; default: the one held out.")
flags.DEFINE_integer("batch_size", None, "Examples at a time; default: the config's. It does not change the figures.")


def main() -> None:
    """Evaluates the run or the weights that the flags name and prints the record.

    Raises:
      ValueError: both or neither of a run and a config with weights.
    """
    given = flags.FLAGS
    if (given.workdir is None) == (given.weights is None):
        raise ValueError("give either --workdir=DIR, or --config=FILE with --weights=FILE")
    config = read_config(Path(given.workdir)) if given.workdir else command.required("config")
    evaluation.find_data(config, given.data)
    task, model = assembly.build(config, weights=given.weights or "", run=given.workdir or given.weights)
    step = evaluation.load(config, model, Path(given.workdir), given.checkpoint) if given.workdir else None
    config.batch_size = given.batch_size or config.batch_size
    record = evaluation.record(config, model, task, given.split) | ({"step": step} if step is not None else {})
    if jax.process_index() == 0:
        print(json.dumps(record))


if __name__ == "__main__":
    command.run(main)
