"""Facts of an adapter for `picoedge show`, and the packs of the shelf that it fits."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from picoedge.errors import ModelError, PicoedgeError
from picoedge.registry.shelf import Shelf
from picoedge.store.adapters import Adapter, AdapterFacts, read_adapter
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.adapter_matrices import check_shapes


def describe_adapter(shelf: Shelf, folder: Path) -> dict[str, Any]:
    """Facts of the LoRA adapter in a folder.

    `fits` and `does_not_fit` are about shapes: whether the adapter was trained on a model of the
    same shape says `base` alone. Raises ModelError where it is damaged, UnsupportedError.
    """
    adapter = read_adapter(folder)
    facts = AdapterFacts.of(folder, adapter).to_json()
    layers = {layer for layer, _ in adapter.matrices}
    fits, others = _packs(shelf, adapter)
    return {
        "name": facts["name"],
        "kind": "LoRA adapter",
        "base": adapter.base or None,
        **facts,
        "use_rslora": adapter.use_rslora,
        "adapted_layers": len(layers),
        "parameters": adapter.parameters,
        "fits": fits,
        "does_not_fit": others,
    }


def _packs(shelf: Shelf, adapter: Adapter) -> tuple[list[str], dict[str, str]]:
    """Names of the packs that the adapter fits, and of each other one what does not fit."""
    fits, others = list[str](), dict[str, str]()
    for item in shelf.items():
        if item.path is None or item.state not in ("packed", "in part"):
            continue
        with suppress(PicoedgeError):  # of a damaged pack `list` and `verify` tell
            config = Pack.open(item.path).config
            try:
                check_shapes(adapter, config)
            except ModelError as error:
                others[item.name] = error.message.partition(": ")[2]
            else:
                fits.append(item.name)
    return fits, others
