"""Recipes: functions from what is known of the data to a whole configuration.

A new recipe is one function and one line here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from cdm.config import CascadeConfig
from cdm.errors import UserError
from cdm.recipes.facts import Facts
from cdm.recipes.imagenet import cdm_imagenet_64, cdm_imagenet_128, cdm_imagenet_256
from cdm.recipes.small import demo, small

RECIPES: dict[str, Callable[[Facts], CascadeConfig]] = {
    "demo": demo,
    "small": small,
    "cdm-imagenet-64": cdm_imagenet_64,
    "cdm-imagenet-128": cdm_imagenet_128,
    "cdm-imagenet-256": cdm_imagenet_256,
}

SIZES = {
    "demo": (16, 32),
    "cdm-imagenet-64": (32, 64),
    "cdm-imagenet-128": (32, 64, 128),
    "cdm-imagenet-256": (32, 64, 256),
}
"""Recipes that come with their own stage sizes; the others take them from the data."""


def check_recipe(name: str) -> None:
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown recipe {name!r}; expected one of {', '.join(RECIPES)}: did you mean {near!r}?")


def make_config(recipe: str, facts: Facts) -> CascadeConfig:
    """The configuration of ``recipe``. Raises ``UserError`` for a name that is not one."""
    check_recipe(recipe)
    return RECIPES[recipe](facts)
