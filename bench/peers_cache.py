"""The cache of a Transformers model, passed under the name that the installed release gives it."""

from __future__ import annotations

import importlib
import inspect
from typing import Any


def new_cache(model: Any) -> dict[str, Any]:
    """The arguments of each call to the model that decodes with one cache; it is filled in place.

    It is `cache` from some 5.x on, and `past_key_values` before.
    """
    transformers = importlib.import_module("transformers")
    known = inspect.signature(type(model).forward).parameters
    name = "cache" if "cache" in known else "past_key_values"
    return {name: transformers.DynamicCache(config=model.config), "use_cache": True}
