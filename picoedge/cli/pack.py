"""`picoedge pack`: a GGUF file or a Hugging Face folder to a pack."""

from __future__ import annotations

from pathlib import Path

import click

from picoedge.cli.output import print_result, showing_progress


@click.command("pack")
@click.argument("source", metavar="SOURCE", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="The pack [default: NAME.pico here]."
)
@click.option(
    "--bits",
    type=click.Choice(["4", "5", "6", "8", "32"]),
    help="Bits per weight for models in floats [default: 8]; a quantized GGUF keeps its own.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(source: Path, out: Path | None, bits: str | None, as_json: bool) -> None:
    """Turn a GGUF file (also a split one) or a Hugging Face folder into a pack.

    An existing pack is replaced once the new one is complete.
    """
    from picoedge.registry.packing import pack_model
    from picoedge.store.sources.source import open_source
    from picoedge.units import format_size

    with showing_progress() as progress:
        opened = open_source(source)
        target = out or Path(f"{opened.name}.pico")
        pack_model(source, target, bits=int(bits) if bits else None, progress=progress)
    size = sum(file.stat().st_size for file in target.iterdir())
    ratio = round(size / max(1, opened.tensor_bytes), 4)  # of the pack to the source's tensors
    facts = {"name": opened.name, "path": str(target), "bytes": size, "ratio": ratio}
    print_result(as_json, facts, f"{target}: {format_size(size)}")
