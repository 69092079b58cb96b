"""Classifies images: ``python predict.py --weights=runs/NAME photo.jpg more/*.png``; as ``mixer-zoo predict``."""

from zoo import commands

if __name__ == "__main__":
    commands.alone(commands.COMMANDS["predict"], "python predict.py")
