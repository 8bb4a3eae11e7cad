"""Byte-level BPE, written as a `tokenizer.json`: of its parts, or of a folder that has none of that
name, but `vocab.json` and `merges.txt`.

The two files do not say how a text is cut into words: the class that the folder's configs name
does, as in `transformers`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from picoedge.errors import TextError
from picoedge.files import read_json_file, read_text_file
from picoedge.text.export.pretokenizers import PreTokenizer, find_pretokenizer
from picoedge.text.tokenizer.base import JSON_FILE, AddedToken

VOCABULARY_FILE, MERGES_FILE = "vocab.json", "merges.txt"
# Class to pre-tokenizer; the class of a model type, where the configs name none.
_CLASSES = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}
_CLASS_OF = dict.fromkeys(("qwen2", "qwen2_vl", "qwen2_5_vl", "qwen3", "qwen3_vl"),
                          "Qwen2Tokenizer")  # fmt: skip
# The end of a text in both classes, where the configs name none.
_END = "<|endoftext|>"


def write_byte_level(
    path: Path,
    pretokenizer: PreTokenizer,
    tokens: Iterable[tuple[str, int]],
    merges: Sequence[str],
    added: Mapping[int, AddedToken],
) -> None:
    """Write the file.

    `tokens`: text and id of each, the added ones too; `merges`: "LEFT RIGHT", the first to be
    merged first. Raises OSError.
    """
    with path.open("w", encoding="utf-8") as file:
        # In parts, to save memory, and compact: the file is parsed at each start.
        file.write('{"version":"1.0",' + _json(_frame(pretokenizer, added))[1:-1])
        file.write(',"model":{"type":"BPE",' + _json(_model(pretokenizer))[1:-1])
        file.write(',"vocab":' + _json(dict(tokens)))
        file.write(',"merges":' + _json(merges) + "}}")


def has_merges(folder: Path) -> bool:
    """Whether a folder has both files."""
    return (folder / VOCABULARY_FILE).exists() and (folder / MERGES_FILE).exists()


def write_from_merges(
    source: Path,
    path: Path,
    configs: tuple[Mapping[str, Any], Mapping[str, Any]],
    added: Mapping[int, AddedToken],
    special: Iterable[str],
) -> None:
    """Write the `tokenizer.json` at `path` of the two files in `source`.

    `configs`: of the tokenizer and of the model; `added`: the tokens that they list, by id;
    `special`: the names of control tokens, which get an id where they have none. Raises TextError
    where the files are damaged, or the class is not known.
    """
    pretokenizer = _pretokenizer(source, *configs)
    vocabulary = _read_vocabulary(source / VOCABULARY_FILE)
    merges = _read_merges(source / MERGES_FILE, vocabulary)
    tokens = dict(added)
    known = vocabulary | {token.text: i for i, token in added.items()}
    last = max(known.values())
    for name in dict.fromkeys((*special, _END)):
        if name not in known:
            last += 1
            known[name] = last
        tokens.setdefault(known[name], AddedToken(name, special=True))
    write_byte_level(path, pretokenizer, known.items(), merges, dict(sorted(tokens.items())))


def _pretokenizer(
    source: Path, tokenizer: Mapping[str, Any], model: Mapping[str, Any]
) -> PreTokenizer:
    named = tokenizer.get("tokenizer_class") or model.get("tokenizer_class")
    named = named or _CLASS_OF.get(str(model.get("model_type")), "")
    name = str(named).removesuffix("Fast")
    if name not in _CLASSES:
        what = f"of the class {str(named)[:64]!r}" if named else "of a class that no config names"
        raise TextError(
            f"{source} has a tokenizer in {VOCABULARY_FILE} and {MERGES_FILE}, {what}",
            f"supported without {JSON_FILE}: {', '.join(_CLASSES)}; get a folder with {JSON_FILE}",
        )
    if tokenizer.get("add_prefix_space") is True:
        raise TextError(
            f"{source}: a tokenizer that puts a space before each text (add_prefix_space) is not "
            "supported",
            f"get a folder with {JSON_FILE}",
        )
    return find_pretokenizer(_CLASSES[name])


def _read_vocabulary(path: Path) -> dict[str, int]:
    vocabulary = read_json_file(path)
    ids = list(vocabulary.values())
    sound = all(type(i) is int and 0 <= i < 2**31 for i in ids) and len(set(ids)) == len(ids)
    if not ids or not sound:
        raise TextError(f"{path} does not give each token an id of its own", "get a sound copy")
    return vocabulary


def _read_merges(path: Path, vocabulary: Mapping[str, int]) -> list[str]:
    lines = read_text_file(path).split("\n")  # other line ends may be characters of a token
    if lines[0].startswith("#version"):
        del lines[0]
    merges = [line for line in (line.rstrip("\r") for line in lines) if line]
    for line in merges:
        left, _, right = line.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise TextError(
                f"{path} merges {line[:80]!r}, which {VOCABULARY_FILE} has not", "get a sound copy"
            )
    return merges


def _frame(pretokenizer: PreTokenizer, added: Mapping[int, AddedToken]) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokens = [
        {"id": i, "content": token.text, **plain, "special": token.special}
        for i, token in added.items()
    ]
    form = pretokenizer.normalizer
    return {
        "truncation": None,
        "padding": None,
        "added_tokens": tokens,
        "normalizer": None if form is None else {"type": form},
        "pre_tokenizer": pretokenizer.to_json(),
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True
        },
    }  # fmt: skip


def _model(pretokenizer: PreTokenizer) -> dict[str, Any]:
    return {
        "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": pretokenizer.ignore_merges,
    }  # fmt: skip


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
