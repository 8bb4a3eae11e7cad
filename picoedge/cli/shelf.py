"""The commands about models on this board's disk: pack, pull, list, show, rm, verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from picoedge.cli.boards import cluster_budgets
from picoedge.cli.options import json_option, model_argument, source_argument
from picoedge.cli.output import (
    print_facts,
    print_json,
    print_result,
    print_table,
    showing_progress,
    warn,
)
from picoedge.errors import UsageError
from picoedge.files import free_bytes
from picoedge.host.resources import available_bytes
from picoedge.progress import one_stage
from picoedge.registry.fits import STREAMED, WHOLE, MemoryOfModel
from picoedge.registry.hub import HubChoice, is_hub_name, parse_hub_name
from picoedge.registry.paths import disk_bytes
from picoedge.registry.shelf import Shelf, memory_of
from picoedge.units import format_size


@click.command("pack")
@source_argument("source", "SOURCE", required=True)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="The pack [default: NAME.pico here]."
)
@click.option(
    "--bits",
    type=click.Choice(["4", "5", "6", "8", "32"]),
    help="Bits per weight for models in floats [default: 8]; a quantized GGUF keeps its own.",
)
@json_option
def pack_command(source: str, out: Path | None, bits: str | None, as_json: bool) -> None:
    """Turn a GGUF file (also a split one), a Hugging Face folder or a hub's model into a pack.

    A pack in f32, as `picoedge train` makes, becomes one of fewer bits: NAME-4bit.pico.

    An existing pack is replaced once the new one is complete.
    """
    from picoedge.registry.packing import open_any_source, pack_model
    from picoedge.text.tokenizer.base import TextSettings

    n_bits = int(bits) if bits else None
    if is_hub_name(source) and not Path(source).exists():
        with showing_progress() as progress:
            shelf, name = Shelf.from_environment(), parse_hub_name(source)
            target = shelf.pack_from_hub(name, out, n_bits, progress)
        size = disk_bytes(target)
        facts = {"name": str(name), "path": str(target), "bytes": size}
        print_result(as_json, facts, f"{target}: {format_size(size)}")
        return
    with showing_progress() as progress:
        opened = open_any_source(Path(source))
        # A pack must not replace the one that it is made from.
        bits_of = f"-{n_bits or 8}bit" if opened.kind == "pack" else ""
        target = out or Path(f"{opened.name}{bits_of}.pico")
        if bits_of and target.exists() and target.samefile(source):
            raise UsageError(f"{target} would replace the pack that it is made from", "give -o OUT")
        pack_model(Path(source), target, bits=n_bits, progress=progress)
    text = TextSettings.read(target)
    for line in (*text.notes, *text.warnings):
        warn(line)
    size = sum(file.stat().st_size for file in target.iterdir())
    ratio = round(size / max(1, opened.tensor_bytes), 4)  # of the pack to the source's tensors
    facts = {"name": opened.name, "path": str(target), "bytes": size, "ratio": ratio}
    if opened.passed_over:
        warn(f"{opened.name} also has images or sound: its text is packed alone")
    print_result(as_json, facts, f"{target}: {format_size(size)}")


@click.command("pull")
@source_argument("name", "NAME", required=False)
@json_option
def pull_model(name: str | None, as_json: bool) -> None:
    """Fetch a model of the catalogue, or of a Hugging Face hub, and pack it.

    NAME is as in `picoedge list` [default: the default model], or hf:OWNER/REPO[:QUANT]. A model
    that is here already is not fetched again, and an interrupted download is resumed.
    """
    shelf = Shelf.from_environment()
    name = name if name and is_hub_name(name) else shelf.entry(name).name
    shelf.sweep()
    if entry := shelf.entries.get(name):
        _tell_fit(entry.name, memory_of(entry, 0))
    with showing_progress() as progress:
        path = shelf.open(name, progress, _tell_fit_of_choice).path
    name = path.stem
    facts = {"name": name, "path": str(path), "bytes": disk_bytes(path)}
    print_result(as_json, facts, f"{name} is ready: {path}")


@click.command("list")
@json_option
def list_models(as_json: bool) -> None:
    """List the models on this board, then the catalogue's others, for `picoedge pull`.

    MEMORY is what a model takes whole, measured unless it says that it is estimated. HERE says how
    it would run in the memory that this board has free, and CLUSTER over the boards of the mesh: in
    memory, streamed from the disk, or too large.
    """
    shelf = Shelf.from_environment()
    items, here, budgets = shelf.items(), available_bytes(), cluster_budgets()
    room = _disk_room(shelf.folder)
    found = [(item, item.memory.on_board(here)) for item in items]
    over = [item.memory.over_boards(budgets) for item in items] if budgets else [""] * len(items)
    if as_json:
        print_json([
            {**item.to_json(), "here": fit, **({"cluster": group} if budgets else {})}
            for (item, fit), group in zip(found, over, strict=True)
        ])  # fmt: skip
        return
    header = (
        "NAME",
        "STATE",
        "SIZE",
        "MEMORY",
        "HERE",
        *(("CLUSTER",) if budgets else ()),
        "LICENCE",
        "",
    )
    rows = [
        (
            item.name,
            item.state,
            format_size(item.n_bytes),
            _needed(item.memory),
            "no room on the disk" if item.path is None and room < 2 * item.n_bytes else fit,
            *((group,) if budgets else ()),
            item.licence,
            item.description,
        )
        for (item, fit), group in zip(found, over, strict=True)
    ]
    print_table(header, rows)


def _disk_room(folder: Path) -> int:
    place = next(path for path in (folder, *folder.parents) if path.exists())
    return free_bytes(place)


def _needed(memory: MemoryOfModel) -> str:
    size = format_size(memory.whole)
    return f"{size} (estimated)" if memory.is_estimated else size


def _tell_fit_of_choice(choice: HubChoice) -> None:
    _tell_fit(str(choice.name), MemoryOfModel.of_pack(choice.pack_bytes))


def _tell_fit(name: str, memory: MemoryOfModel) -> None:
    """Say how a model would run, where it would not simply run here."""
    here = available_bytes()
    fit = memory.on_board(here)
    if fit == WHOLE:
        return
    line = f"{name} takes {_needed(memory)} of memory, {format_size(here)} are free here: "
    line += "its weights will be streamed" if fit == STREAMED else "too little even to stream it"
    budgets = cluster_budgets()
    if budgets and memory.over_boards(budgets) == WHOLE:
        line += "; over the cluster's boards (--cluster) it fits"
    warn(line)


@click.command("show")
@model_argument(required=False)
@json_option
def show_model(model: str | None, as_json: bool) -> None:
    """Show facts about a model: architecture, shape, formats, shards, context, licence, tokenizer.

    Of a LoRA adapter's folder: its base, rank and targets, and which packs here it fits by their
    shapes. Nothing is fetched or packed.
    """
    from picoedge.registry.details import describe

    facts = describe(Shelf.from_environment(), model)
    if as_json:
        print_json(facts)
    else:
        print_facts([(name.replace("_", " "), _text(name, value)) for name, value in facts.items()])


def _text(name: str, value: Any) -> str:
    if name == "formats":
        return ", ".join(f"{key} {format_size(size)}" for key, size in value.items())
    if name == "source":
        return f"{value.get('kind', '?')} {value.get('file', '')}".rstrip()
    if name == "files":
        return ", ".join(f"{path} ({digest})" for path, digest in value.items())
    if name == "sampling":
        return ", ".join(f"{key} {number:g}" for key, number in value.items())
    if name == "notes":
        return "; ".join(value)
    if name == "does_not_fit":
        return "; ".join(f"{pack}: {why}" for pack, why in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{count} {key}" for key, count in value.items())
    if name in ("bytes", "held_bytes", "memory_bytes", "least_memory_bytes"):
        return format_size(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not stated" if value is None else str(value)


@click.command("rm")
@click.argument("name", metavar="NAME")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
def remove_model(name: str, yes: bool, as_json: bool) -> None:
    """Remove a packed model from this board.

    NAME is as in `picoedge list`. Nothing outside the shelf is removed: the GGUF file or folder
    that a pack was made from stays.
    """
    shelf = Shelf.from_environment()
    shelf.held(name)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"not removing {name} without being asked", "add -y")
        if not click.confirm(f"Remove {name} from {shelf.folder}?", err=True):
            return
    freed = shelf.remove(name)
    line = f"removed {name}: {format_size(freed)} freed"
    print_result(as_json, {"name": name, "bytes": freed}, line)


@click.command("verify")
@model_argument(required=False)
@json_option
def verify_pack(model: str | None, as_json: bool) -> None:
    """Check every byte of a pack against its hashes; names the first file that differs."""
    from picoedge.store.pack.reader import Pack

    pack = Pack.open(Shelf.from_environment().find(model))
    with showing_progress() as progress:
        pack.verify(one_stage(progress, f"verifying {pack.name}"))
    size = format_size(pack.nbytes)
    if not pack.is_whole:
        size = f"{format_size(pack.held_bytes)} of {size} here"
    facts = {"name": pack.name, "path": str(pack.path), "bytes": pack.nbytes}
    print_result(as_json, facts, f"{pack.path}: {size}, all as packed")
