"""Placeholder until the options land."""

from __future__ import annotations

from typing import Any

import click


def config_defaults() -> dict[str, Any]:
    """Values of the configuration file, by parameter name."""
    return {}


def source_of(ctx: click.Context, param: click.Parameter) -> str:
    """Where the value of `param` came from, as the user knows it."""
    return str(param.name)
