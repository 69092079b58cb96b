"""``python -m zoo``: the commands of :mod:`zoo.commands`."""

from zoo.commands import main

if __name__ == "__main__":
    main()
