"""What a hub lists, and chat templates that a user chose."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from fuzz.inputs import of_values
from fuzz.mutate import to_json
from fuzz.target import Run, Target
from fuzz.targets.text import MESSAGES, TEMPLATES, mutated_template
from fuzz.targets.tokenizers import TOKENIZER, TOKENIZER_CONFIG
from picoedge.errors import DownloadError, UsageError
from picoedge.registry.catalogue import FetchSettings
from picoedge.registry.hub import choose_files, parse_hub_name, parse_listing
from picoedge.registry.hub_download import fetch_choice

NOWHERE = FetchSettings(hf_endpoint="http://127.0.0.1:1", tries=1, pause=lambda seconds: None)


def _large(path: str) -> dict[str, Any]:
    return {
        "type": "file",
        "path": path,
        "size": 1000,
        "oid": "cd" * 20,
        "lfs": {"oid": "ab" * 32, "size": 1000, "pointerSize": 134},
    }


def _small(path: str) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": 100, "oid": "cd" * 20}


LISTINGS = (
    [_small("README.md"), _large("m-Q4_K_M.gguf"), _large("m-Q8_0.gguf"), _large("mmproj.gguf")],
    [_large("Q4_0/m-Q4_0-00001-of-00002.gguf"), _large("Q4_0/m-Q4_0-00002-of-00002.gguf")],
    [_large("odd.gguf")],
    [_small("config.json"), _small("tokenizer.json"), _large("model.safetensors")],
    [{"type": "directory", "path": "a", "oid": "cd" * 20, "size": 0}, _small("x.gguf")],
)


def _listing(folder: Path) -> Run:
    """A page of a listing, and the choice of files from it, up to the first byte to be fetched."""
    names = [parse_hub_name(name) for name in ("a/b", "a/b:Q4_0")]

    def run(data: bytes) -> None:
        try:
            page = json.loads(data)
        except (ValueError, RecursionError):
            raise UsageError("no JSON") from None
        choice = choose_files(names[len(data) % 2], parse_listing(page, "the listing of a/b"))
        with suppress(DownloadError):  # nothing answers there
            fetch_choice(choice, folder / "out", lambda *told: None, NOWHERE)

    return run


def _chosen(folder: Path) -> Run:
    """A file that a user chose: kept, a conversation's ids, what ends an answer, forgotten."""
    from picoedge.text.export.export import write_from_huggingface
    from picoedge.text.template.chosen import choose_template, end_answers, keep_template
    from picoedge.text.template.template import ChatTemplate, encode_chat
    from picoedge.text.tokenizer.load import load_tokenizer

    source, pack, path = folder / "source", folder / "pack", folder / "t.jinja"
    for each in (source, pack):
        each.mkdir()
    for name, value in (
        ("config.json", {}),
        ("tokenizer.json", TOKENIZER),
        ("tokenizer_config.json", TOKENIZER_CONFIG),
    ):
        (source / name).write_bytes(to_json(value))
    write_from_huggingface(source, pack)
    tokenizer = load_tokenizer(pack)
    own_ends = tokenizer.eos_ids

    def run(data: bytes) -> None:
        tokenizer.eos_ids = own_ends
        path.write_bytes(data)
        template = choose_template(pack, str(path))
        keep_template(pack, template)
        kept = ChatTemplate.load(pack)
        assert kept is not None
        end_answers(kept, tokenizer)
        facts, talk = kept.probe(), TALKS[len(data) % len(TALKS)]
        assert all(isinstance(note, str) for note in facts.notes(talk))
        assert facts.content in ("string", "parts")
        try:
            assert encode_chat(kept, tokenizer, talk)
        finally:
            keep_template(pack, None)

    return run


TALKS: tuple[list[dict[str, Any]], ...] = (
    MESSAGES,
    [{"role": "user", "content": [{"type": "text", "text": "Hi"}, "there"]}],
    [{"role": "user", "content": [{"type": "image"}]}],
    [{"role": "user", "content": "a"}, {"role": "system", "content": "b <|end|>"}],
    [{"role": "user", "content": None}, {"role": "assistant", "content": "\U000f0000"}],
    [{"role": "user", "content": 7}],
)
_PRINT = "{% for m in messages %}{{ m.content }}{% endfor %}"
FORMS = (  # what a template may do with a conversation
    "{% for m in messages %}{{ m.content[0].text }}{% endfor %}",
    "{{ messages[-1].content }}",
    "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
    "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + _PRINT,
    _PRINT + "{% if enable_thinking %}<think>{% endif %}",
    _PRINT + "{% if thinking is not defined or thinking %}<think>{% endif %}",
    "{% for m in messages %}{{ m.content if m.role == 'user' else m.content[0].text }}{% endfor %}",
    "{% for m in messages[:3] %}{{ m.content }}{% endfor %}",
    "{{ tools }}" + _PRINT + "{% if messages | length > 2 %}{{ 1 // 0 }}{% endif %}",
    "{{ messages[0].content }}{{ messages[-1].content | replace('H', '') }}",
    _PRINT + "{{ eos_token }}<|im_end|>",
)


def _samples() -> Sequence[bytes]:
    from picoedge.text.template.named import TEMPLATES as NAMED

    return [
        *(path.read_bytes() for path in TEMPLATES),
        *(text.encode() for text in (*NAMED.values(), *FORMS)),
    ]


def _mutated(rng: Random, given: Sequence[bytes]) -> bytes:
    if rng.randrange(8) == 0:
        return rng.choice((b"\xff\xfe", b"\xef\xbb\xbf", b"\0")) + rng.choice(given)
    return mutated_template(rng, given)


HUB = (
    Target(
        "hub-listing",
        _listing,
        **of_values(LISTINGS, ("lfs", "path", "size", "oid", "type")),
        modules=(
            "registry/hub.py:parse_listing,_file,choose_files,_ggufs,_has,_label,_folder,_checked",
        ),
        weight=2,
    ),
    Target(
        "chosen-template",
        _chosen,
        _samples,
        _mutated,
        ("text/template/chosen.py:end_answers,keep_template", "text/template/probe.py"),
    ),
)
