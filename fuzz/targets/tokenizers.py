"""Tokenizers: of a GGUF, of a Hugging Face folder, of SentencePiece."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from fuzz.gguf.file import Gguf
from fuzz.gguf.models import ALPHABET, SAMPLES
from fuzz.gguf.mutations import mutated_gguf_of
from fuzz.inputs import of_bytes, of_values
from fuzz.mutate import mutate_bytes, to_json
from fuzz.target import Run, Target
from fuzz.targets.files import CONFIG
from picoedge.store.sources.gguf_source import GgufSource
from picoedge.store.sources.huggingface import _sampling
from picoedge.text.export.export import write_from_gguf, write_from_huggingface
from picoedge.text.export.json_head import read_head
from picoedge.text.export.sentencepiece_proto import read_rules, write_model
from picoedge.text.tokenizer.load import load_tokenizer

SAID = "a b <s> abc 日本 🙂\n\n  12"


@contextmanager
def empty(folder: Path) -> Iterator[Path]:
    """A folder that is empty before, and gone after."""
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _use_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(SAID)
    for token in (*ids[:20], 0, 1, tokenizer.vocab_size - 1, tokenizer.vocab_size, 2**31):
        tokenizer.token_bytes(token)


def _gguf_text(folder: Path) -> Run:
    path = folder / "m.gguf"

    def run(data: bytes) -> None:
        from picoedge.store.sources.gguf import read_gguf

        path.write_bytes(data)
        metadata = read_gguf(path).metadata
        with empty(folder / "out") as out:
            write_from_gguf(metadata, out)
            _use_tokenizer(out)

    return run


def _text_samples() -> list[bytes]:
    return [sample.to_bytes() for sample in SAMPLES]


def _mutated_vocabulary(rng: Random, samples: Sequence[bytes]) -> bytes:
    """Only keys change: the weights do not matter."""
    file = rng.choice(SAMPLES)
    keys = tuple((k, v) for k, v in file.keys if k.startswith(("tokenizer.", "general.")))
    return mutated_gguf_of(rng, Gguf(keys, ()))


# -- tokenizers ----------------------------------------------------------------------------------

TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {
            "id": 0,
            "content": "<|end|>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        },
        {
            "id": 1,
            "content": "<|start|>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        },
    ],
    "normalizer": None,
    "pre_tokenizer": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
    "post_processor": {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": False,
        "use_regex": True,
    },
    "decoder": {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    },
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {t: i for i, t in enumerate(["<|end|>", "<|start|>", *ALPHABET, "ab", "abc"])},
        "merges": ["a b", "ab c"],
    },
}
TOKENIZER_CONFIG: dict[str, Any] = {
    "bos_token": "<|start|>",
    "eos_token": {"content": "<|end|>", "__type": "AddedToken"},
    "add_bos_token": True,
    "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "tokenizer_class": "PreTrainedTokenizerFast",
    "added_tokens_decoder": {"0": {"content": "<|end|>", "special": True}},
    "model_max_length": 128,
}
SENTENCEPIECE_CONFIG = {
    **TOKENIZER_CONFIG,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "legacy": False,
    "additional_special_tokens": ["<x>", {"content": "<y>"}],
    "added_tokens_decoder": {"300": {"content": "<x>", "special": True}},
}
HEADS = (
    {**TOKENIZER, "model": {}},
    {
        "added_tokens": [{"id": 300, "content": "<x>", "special": True}],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace"}],
        },
        "pre_tokenizer": None,
        "model": {},
    },
    {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Metaspace", "prepend_scheme": "first"}],
        },
        "model": {},
    },
)
TOKENIZER_NAMES = (
    "Split",
    "Sequence",
    "Metaspace",
    "Regex",
    "pretokenizers",
    "pattern",
    "Replace",
    "Prepend",
    "TemplateProcessing",
    "Unigram",
    "WordPiece",
    "unk_id",
    "legacy",
    "chat_template",
    "eos_token",
    "add_prefix_space",
)


def _folder_of(name: str) -> Callable[[Path], Run]:
    """Opens a target whose input is the file `name` of a folder with a tokenizer."""

    def open_(folder: Path) -> Run:
        source = folder / "source"
        source.mkdir()
        files = {
            "config.json": CONFIG,
            "tokenizer.json": TOKENIZER,
            "tokenizer_config.json": TOKENIZER_CONFIG,
            "generation_config.json": {
                "eos_token_id": [0, 1],
                "temperature": 0.6,
                "top_p": 0.9,
                "top_k": 20,
            },
            "special_tokens_map.json": {"bos_token": "<|start|>"},
        }
        for each, value in files.items():
            (source / each).write_bytes(to_json(value))

        def run(data: bytes) -> None:
            (source / name).write_bytes(data)
            with empty(folder / "out") as out:
                write_from_huggingface(source, out)
                _use_tokenizer(out)
            sampling = _sampling(source)
            assert all(isinstance(value, (int, float)) for value in sampling.values())

        return run

    return open_


def _sentencepiece(name: str = "tokenizer.model") -> Callable[[Path], Run]:
    """Opens a target whose input is the file `name` of a folder with a SentencePiece model."""

    def open_(folder: Path) -> Run:
        source = folder / "source"
        source.mkdir()
        (source / "config.json").write_bytes(to_json(CONFIG))
        (source / "tokenizer_config.json").write_bytes(to_json(SENTENCEPIECE_CONFIG))
        (source / "tokenizer.model").write_bytes(_sentencepiece_samples()[0])

        def run(data: bytes) -> None:
            (source / name).write_bytes(data)
            with empty(folder / "out") as out:
                write_from_huggingface(source, out)
                _use_tokenizer(out)

        return run

    return open_


def _head(folder: Path) -> Run:
    """The settings of a large tokenizer.json beside a SentencePiece model."""
    from picoedge.text.export.from_huggingface import Folder, _copy_model
    from picoedge.text.tokenizer.load import load_sentencepiece

    source = folder / "source"
    _sentencepiece()(folder)
    path = source / "tokenizer.json"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        model = load_sentencepiece(source / "tokenizer.model", "")
        with empty(folder / "out") as out:
            _copy_model(model, Folder.read(source), read_head(path), out).write(out)
            _use_tokenizer(out)

    return run


def _sentencepiece_samples() -> list[bytes]:
    """A model as the exporter writes it from a GGUF's keys."""
    made = []
    for sample in SAMPLES[:1]:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "m.gguf"
            path.write_bytes(sample.to_bytes())
            out = Path(name) / "out"
            out.mkdir()
            write_from_gguf(GgufSource(path).metadata, out)
            made.append((out / "tokenizer.model").read_bytes())
    return made


def _rules_samples() -> list[bytes]:
    """A whole model, the settings at its end, and these with those of other kinds behind them."""
    file = io.BytesIO()
    write_model(
        file, [], vocab_size=9, byte_fallback=True, add_dummy_prefix=True, unk_id=0, bos_id=1,
        eos_id=2,
    )  # fmt: skip
    settings = file.getvalue()
    others = (
        b"\x12\x02\x18\x01",  # unigram
        b"\x12\x02\x18\x03",  # words
        b"\x1a\x09\x12\x05charm\x20\x00",
        b"\x25abcd\x29abcdefgh\x2a\x02ab",  # fields of other wire types
    )
    return [*_sentencepiece_samples(), settings, *(settings + other for other in others)]


def _rules(folder: Path) -> Run:
    """How a model splits texts, which exporters read themselves."""

    def run(data: bytes) -> None:
        rules = read_rules(data)
        assert isinstance(rules.charsmap, bytes)
        assert isinstance(rules.merges_spaces, bool)

    return run


TOKENIZERS = (
    Target(
        "gguf-vocabulary",
        _gguf_text,
        _text_samples,
        _mutated_vocabulary,
        (
            "text/export/from_gguf.py",
            "text/export/sentencepiece_proto.py:write_model,_varint,_numbers,_chunk",
        ),
        weight=2,
    ),
    Target(
        "tokenizer.json",
        _folder_of("tokenizer.json"),
        **of_values([TOKENIZER], TOKENIZER_NAMES),
        modules=("text/tokenizer/load.py:load_tokenizer_json,decoder_steps,_drops_first_space",),
    ),
    Target(
        "tokenizer_config.json",
        _folder_of("tokenizer_config.json"),
        **of_values([TOKENIZER_CONFIG], TOKENIZER_NAMES),
        modules=(
            "text/export/from_huggingface.py:Folder.read,Folder.token,Folder.token_ids,_settings",
        ),
    ),
    Target(
        "sentencepiece-config",
        _sentencepiece("tokenizer_config.json"),
        **of_values([SENTENCEPIECE_CONFIG], TOKENIZER_NAMES),
        modules=("text/export/from_huggingface.py:_copy_model,_space_prefix,_added,_settings",),
    ),
    Target(
        "added_tokens.json",
        _sentencepiece("added_tokens.json"),
        **of_values([{"<x>": 300, "<y>": 301}]),
        modules=("text/export/from_huggingface.py:_added,Folder.special_names",),
    ),
    Target(
        "tokenizer-head",
        _head,
        **of_values(HEADS, (*TOKENIZER_NAMES, "normalizer", "added_tokens", "prepend_scheme")),
        modules=(
            "text/export/json_head.py",
            "text/export/from_huggingface.py:_space_prefix,_space_prefix_in,_steps,_added",
        ),
    ),
    Target(
        "generation_config.json",
        _folder_of("generation_config.json"),
        **of_values(
            [
                {
                    "eos_token_id": [0, 1],
                    "temperature": 0.6,
                    "top_p": 0.95,
                    "top_k": 20,
                    "do_sample": True,
                }
            ]
        ),
    ),
    Target(
        "tokenizer.model",
        _sentencepiece(),
        _sentencepiece_samples,
        lambda rng, given: mutate_bytes(rng, rng.choice(given), given),
    ),
    Target(
        "sentencepiece-rules",
        _rules,
        **of_bytes(_rules_samples),
        modules=("text/export/sentencepiece_proto.py:read_rules,_fields,_read_varint",),
    ),
)
