"""Names what is on images: ``python predict.py --weights=runs/NAME photo.jpg more/*.png``.

The weights are the working directory of a run of train.py, or with ``--model=NAME`` whatever ``zoo.load`` reads.
"""

import argparse
import json

import zoo
from training import command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files of images, of any size")
    parser.add_argument(
        "--weights", required=True, help="a run's working directory, or a file, folder or name of weights"
    )
    parser.add_argument("--model", help="the model's name; not needed for a run")
    parser.add_argument("--top_k", type=int, default=5, help="how many classes to name")
    parser.add_argument("--batch_size", type=int, default=32, help="images at a time")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    given = parser.parse_args()
    model = zoo.create(given.model, weights=given.weights)
    for path, found in zip(
        given.images, zoo.predict(model, given.images, batch_size=given.batch_size, top_k=given.top_k), strict=True
    ):
        if given.json:
            print(
                json.dumps(
                    {
                        "image": path,
                        "classes": [{"name": name, "probability": probability} for name, probability in found],
                    }
                )
            )
        else:
            print(f"{path}: " + ", ".join(f"{name} {probability:.3f}" for name, probability in found))


if __name__ == "__main__":
    with command.one_message():
        main()
