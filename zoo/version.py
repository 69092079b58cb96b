"""The version of the zoo."""

__version__ = "0.2.0"
