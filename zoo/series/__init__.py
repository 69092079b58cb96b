"""Architectures for series of numbers, one file each; importing this package registers them all."""

from zoo.series import hiss as hiss
