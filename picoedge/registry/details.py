"""Facts of a model for `picoedge show`, packed or not, in plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from picoedge.config import ModelConfig
from picoedge.errors import ModelError, TextError
from picoedge.kernels.blocks import Weights
from picoedge.registry.adapter_details import describe_adapter
from picoedge.registry.catalogue import CatalogueEntry
from picoedge.registry.hub import HubChoice, is_hub_name, parse_hub_name
from picoedge.registry.hub_download import look_up
from picoedge.registry.paths import is_pack
from picoedge.registry.shelf import Shelf
from picoedge.store.adapter_refusals import is_adapter
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.source import ModelSource, open_source
from picoedge.text.template.template import ChatTemplate, chosen_path
from picoedge.text.tokenizer.base import TextSettings

_MOST_VARIABLES = 100


def describe(shelf: Shelf, model: str | None) -> dict[str, Any]:
    """Facts of MODEL, by name, or of an adapter; `packed` says whether they are of a pack.

    Raises UsageError where there is no such model, ModelError where it is damaged.
    """
    try:
        path = shelf.find(model)
    except ModelError:
        if model is not None and is_hub_name(model):
            return _of_hub(look_up(parse_hub_name(model), shelf.how))
        if model is None or model in shelf.entries:
            entry = shelf.entry(model)
            return {
                "name": entry.name,
                "packed": False,
                "description": entry.description,
                "licence": entry.licence,
                "bytes": entry.n_bytes,
                "memory_bytes": entry.memory_bytes,
                **({"sha256": entry.sha256} if entry.sha256 else {}),
                **_catalogued(entry),
            }
        if not Path(model).exists():
            raise
        if is_adapter(Path(model)):
            return describe_adapter(shelf, Path(model))
        source = open_source(Path(model))
        return {
            "name": source.name,
            "packed": False,
            "path": str(Path(model)),
            **_shape(source.config),
            "bytes": source.tensor_bytes,
            "licence": _licence_in(source),
            **_sampling(source.sampling),
            **_text_alone(source.passed_over),
        }
    pack = Pack.open(path)
    return {**describe_pack(pack), "licence": _licence(shelf, model, pack.name)}


def _catalogued(entry: CatalogueEntry) -> dict[str, Any]:
    found: dict[str, Any] = {"memory": "measured" if entry.measured else "estimated"}
    if entry.parameters:
        found["parameters"] = entry.parameters
    if entry.least_memory_bytes:
        found["least_memory_bytes"] = entry.least_memory_bytes
    if entry.hub_name:
        found["repository"] = str(entry.hub_name)
    if entry.gated:
        page = f"huggingface.co/{entry.hub_name.repo}" if entry.hub_name else "its page"
        found["gated"] = f"accept its licence at {page}, then set HF_TOKEN"
    return found


def _of_hub(choice: HubChoice) -> dict[str, Any]:
    """Facts of a hub's own record."""
    return {
        "name": str(choice.name),
        "packed": False,
        "quantization": choice.label,
        "bytes": choice.n_bytes,
        "files": {file.path: file.sha256 or f"git sha1 {file.git_sha1}" for file in choice.files},
    }


def describe_pack(pack: Pack) -> dict[str, Any]:
    """Facts of a pack: shape, formats with their bytes, shards, text."""
    embedding, folder = pack.embedding, pack.path
    kinds = {"tokenizer.json": "byte-level BPE", "tokenizer.model": "SentencePiece"}
    formats: Counter[str] = Counter()
    for unit in pack.spans(pack.all_shards):
        for spec in pack.shard(unit.kind, unit.layer).matrices.values():
            formats[spec.format.name] += spec.nbytes * len(unit.shards)
    if not isinstance(embedding, Weights):
        formats[f"{embedding.encoding.name} (embedding)"] += embedding.rows.nbytes
    layers = pack.config.num_hidden_layers
    return {
        "name": pack.name,
        "packed": True,
        "path": str(pack.path),
        **_shape(pack.config),
        "bytes": pack.nbytes,
        **({} if pack.is_whole else {"held_bytes": pack.held_bytes}),
        "formats": dict(formats.most_common()),
        "shards": {
            "attention": layers * pack.n_attention_shards,
            "ffn": layers * pack.n_ffn_shards,
            "head": pack.n_head_shards,
        },
        "tokenizer": next((kinds[name] for name in kinds if (folder / name).is_file()), None),
        **_template(folder),
        **_notes(folder),
        **_sampling(pack.sampling),
        **_text_alone(pack.source.get("passed_over")),
        "source": pack.source,
    }


def _notes(folder: Path) -> dict[str, Any]:
    """Remarks of the packing on the model's text, and doubts about its tokenizer."""
    try:
        text = TextSettings.read(folder)
    except TextError as error:
        return {"notes": [str(error)]}
    notes = [*text.notes, *text.warnings]
    return {"notes": notes} if notes else {}


def _template(folder: Path) -> dict[str, Any]:
    """Whether there is a chat template, where the chosen one is, and what it can be told."""
    try:
        template = ChatTemplate.load(folder)
        facts = None if template is None else template.probe()
    except TextError:
        return {"chat_template": True}
    if template is None or facts is None:
        return {"chat_template": False}
    return {
        "chat_template": True,
        **({"chosen_template": str(chosen_path(folder))} if template.chosen else {}),
        "template_variables": sorted(facts.variables)[:_MOST_VARIABLES],
    }


def _sampling(options: Mapping[str, float]) -> dict[str, Any]:
    return {"sampling": dict(options)} if options else {}


def _text_alone(passed_over: object) -> dict[str, Any]:
    """Said of a model that sees or hears as well, which is packed without that."""
    return {"passed_over": "images or sound: it reads text alone"} if passed_over else {}


def _licence(shelf: Shelf, model: str | None, name: str) -> str | None:
    """As the catalogue says, or the file that was named."""
    if name in shelf.entries:
        return shelf.entries[name].licence
    if model is None or is_pack(Path(model)) or not Path(model).exists():
        return None
    return _licence_in(open_source(Path(model)))


def _licence_in(source: ModelSource) -> str | None:
    licence = source.metadata.get("general.license")
    return licence if isinstance(licence, str) else None


def _shape(config: ModelConfig) -> dict[str, Any]:
    return {
        "architecture": config.architecture,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "attention_heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "tied_embeddings": config.tie_word_embeddings,
        "context": config.max_position_embeddings,
    }
