"""The command that writes a model for other programs: export."""

from __future__ import annotations

from pathlib import Path

import click

from picoedge.cli.options import json_option, model_argument
from picoedge.cli.output import print_result, showing_progress, warn
from picoedge.registry.paths import disk_bytes
from picoedge.registry.shelf import Shelf
from picoedge.units import format_size


@click.command("export")
@model_argument(required=True)
@click.option(
    "--to", "form", type=click.Choice(["hf", "gguf"]), required=True,
    help="hf: a folder for transformers; gguf: a file for llama.cpp.",
)  # fmt: skip
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True,
    help="The folder or file to write; nothing may be there.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(["f32", "f16"]),
    help="Type of the values [default: f32 for a model in f32, else f16].",
)  # fmt: skip
@json_option
def export_model(model: str, form: str, out: Path, dtype: str | None, as_json: bool) -> None:
    """Write a packed model as a Hugging Face folder or a GGUF file.

    MODEL is as in `picoedge list`, or a pack. The values of a quantized model are those that it is
    run with, as floats: about four times as large in f16, and no better.
    """
    from picoedge.registry.exporting import export_pack
    from picoedge.store.pack.reader import Pack

    pack = Pack.open(Shelf.from_environment().find(model))
    with showing_progress() as progress:
        warnings = export_pack(pack, out, form, dtype, progress)  # type: ignore[arg-type]
    for line in warnings:
        warn(line)
    size = disk_bytes(out) if out.is_dir() else out.stat().st_size
    facts = {"name": pack.name, "path": str(out), "to": form, "bytes": size}
    print_result(as_json, facts, f"{out}: {format_size(size)}")
