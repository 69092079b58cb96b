"""Routing Transformer (A. Roy et al., arXiv:2003.05997).

The commitment loss, which pulls queries toward their centroids, has the weight of the authors' code (1e-4). The
learning rates are our choice: the authors train with Adafactor, whose steps are relative to the parameters. The nano
size has eight clusters of 32 tokens for the text's 256.
"""

from __future__ import annotations

from configs.common import LanguageArchitecture, language

COMMITMENT = {"aux_losses": {"commitment": 1e-4}}
ARCHITECTURE = LanguageArchitecture(
    variants={
        "nano": {"model": "routing_transformer_nano", "optimizer": {"learning_rate": 2e-3}, **COMMITMENT},
        "wikitext103": {"model": "routing_transformer_wikitext103", "optimizer": {"learning_rate": 3e-4}, **COMMITMENT},
        "enwik8": {"model": "routing_transformer_enwik8", "optimizer": {"learning_rate": 3e-4}, **COMMITMENT},
        "imagenet64": {"model": "routing_transformer_imagenet64", "optimizer": {"learning_rate": 3e-4}, **COMMITMENT},
        "pg19": {"model": "routing_transformer_pg19", "optimizer": {"learning_rate": 3e-4}, **COMMITMENT},
    },
    task={"optimizer": {"learning_rate": 1e-3}, "model_options": {"depth": 2, "routed_layers": 1}},
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return language(ARCHITECTURE, argument)
