"""Tokenizers of Hugging Face folders: which file counts, and what the configs say beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from text_models import (
    END,
    SAMPLES,
    bpe_metadata,
    load_sentencepiece,
    trained_sentencepiece,
)

from picoedge.errors import TextError
from picoedge.text.export.export import write_from_gguf, write_from_huggingface
from picoedge.text.template.template import ChatTemplate
from picoedge.text.tokenizer.base import Tokenizer
from picoedge.text.tokenizer.load import load_tokenizer

SENTENCEPIECE_CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "legacy": True}


def folder_of(path: Path, files: dict[str, Any]) -> Path:
    """A model folder; values other than bytes and text are written as JSON."""
    path.mkdir()
    for name, content in files.items():
        if isinstance(content, bytes):
            (path / name).write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            (path / name).write_text(text, encoding="utf-8")
    return path


def packed(tmp_path: Path, files: dict[str, Any]) -> Path:
    out = tmp_path / "pack"
    out.mkdir()
    write_from_huggingface(folder_of(tmp_path / "model", files), out)
    return out


def loaded(tmp_path: Path, files: dict[str, Any]) -> Tokenizer:
    return load_tokenizer(packed(tmp_path, files))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A byte-level tokenizer.json that begins texts with <|im_start|>."""
    folder = tmp_path_factory.mktemp("byte_level")
    write_from_gguf(bpe_metadata(), folder)
    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    values["truncation"] = {
        "direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    first = {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {first["id"]: first},
    }  # fmt: skip
    return values


def test_tokenizer_json_equals_transformers(tmp_path: Path, byte_level: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": END,
    }
    files = {"tokenizer.json": byte_level, "tokenizer_config.json": config}
    ours = loaded(tmp_path, files)
    oracle = AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in [*SAMPLES, f"a{END}b"]:
        expected = oracle(text).input_ids
        if text.startswith("<|im_start|>"):  # they begin such a text with it twice, we do not
            expected = expected[1:]
        assert ours.encode(text) == expected
        assert ours.encode(text, add_bos=False) == oracle(text, add_special_tokens=False).input_ids
        ids = ours.encode(text)
        assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


def test_ends_come_from_every_config(tmp_path: Path, byte_level: dict[str, Any]) -> None:
    files = {
        "tokenizer.json": byte_level,
        "tokenizer_config.json": {"eos_token": {"content": "<tool>"}, "add_bos_token": False},
        "generation_config.json": {"eos_token_id": [5, 6], "bos_token_id": 1},
        "config.json": {"eos_token_id": 7, "text_config": {"eos_token_id": 8}},
    }
    tokenizer = loaded(tmp_path, files)
    tool, turn, text = 700, 2, 0  # the last two end a turn by their names
    assert tokenizer.eos_ids == {5, 6, 7, 8, tool, turn, text}
    assert tokenizer.bos_id == 1
    assert tokenizer.encode("") == []
    assert tokenizer.encode("<tool>", parse_special=False) != [tool]


def test_special_tokens_map_names_what_the_config_does_not(
    tmp_path: Path, byte_level: dict[str, Any]
) -> None:
    names = {"bos_token": {"content": "<|im_start|>"}, "eos_token": END}
    tokenizer = loaded(tmp_path, {"tokenizer.json": byte_level, "special_tokens_map.json": names})
    assert (tokenizer.bos_id, tokenizer.encode("")) == (1, [1])


def test_sentencepiece_alone(tmp_path: Path) -> None:
    model = trained_sentencepiece(True)
    files = {
        "tokenizer.model": model,
        "tokenizer_config.json": {
            **SENTENCEPIECE_CONFIG,
            "added_tokens_decoder": {
                "800": {"content": "<|im_end|>", "special": False},
                "801": {"content": "<more>", "special": False},
            },
        },
    }
    ours, oracle = loaded(tmp_path, files), load_sentencepiece(model)
    for text in SAMPLES:
        assert ours.encode(text, parse_special=False) == [1, *oracle.encode(text)]
    assert ours.encode("a<more>b", add_bos=False) == [*oracle.encode("a"), 801, *oracle.encode("b")]
    assert ours.vocab_size == 802
    assert ours.eos_ids == {2, 4, 800}
    assert 800 not in ours.encode("<|im_end|>", parse_special=False)
    assert ours.decode(ours.encode("x <more> y", add_bos=False)) == "x <more>  y"


def test_sentencepiece_with_a_space_only_before_the_text(tmp_path: Path) -> None:
    model = trained_sentencepiece(True)
    config = {**SENTENCEPIECE_CONFIG, "legacy": False}
    ours = loaded(tmp_path, {"tokenizer.model": model, "tokenizer_config.json": config})
    first, turn = load_sentencepiece(model).encode("the"), 4
    ids = ours.encode("the<end_of_turn>the", add_bos=False)
    assert ids[: len(first) + 1] == [*first, turn]
    assert b"".join(map(ours.token_bytes, ids[len(first) + 1 :])) == b"the"
    assert ours.decode(ids) == "thethe"


def test_added_tokens_json(tmp_path: Path) -> None:
    files = {
        "tokenizer.model": trained_sentencepiece(False),
        "added_tokens.json": {"<mask>": 800, "<plain>": 801},
        "special_tokens_map.json": {"bos_token": "<s>", "mask_token": "<mask>"},
    }
    tokenizer = loaded(tmp_path, files)
    assert tokenizer.encode("<mask><plain>", add_bos=False) == [800, 801]
    untrusted = tokenizer.encode("<mask><plain>", add_bos=False, parse_special=False)
    assert (untrusted[-1], 800 in untrusted) == (801, False)


def test_sentencepiece_style_tokenizer_json(tmp_path: Path) -> None:
    """Llama's own tokenizer.json: BPE over pieces with byte fallback."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{b:02X}>": 3 + b for b in range(256)}}
    vocab |= {text: 259 + i for i, text in enumerate(["▁", "h", "i", "▁h", "▁hi"])}
    theirs = Tokenizer(
        models.BPE(
            vocab, [("▁", "h"), ("▁h", "i")], unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    theirs.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    theirs.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    theirs.add_special_tokens(["<unk>", "<s>", "</s>"])
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    ours = loaded(tmp_path, {"tokenizer.json": theirs.to_str(), "tokenizer_config.json": config})
    for text in ["hi hi", "hi é 🙂", " hi"]:
        assert ours.encode(text) == [1, *theirs.encode(text, add_special_tokens=False).ids]
        assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text)) == text


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template.jinja": "one", "tokenizer_config.json": {"chat_template": "two"}},
        {"tokenizer_config.json": {"chat_template": "one"}},
        {"chat_template.json": {"chat_template": "one"}},
        {
            "tokenizer_config.json": {
                "chat_template": [
                    {"name": "tool_use", "template": "two"},
                    {"name": "default", "template": "one"},
                ]
            }
        },
    ],
)
def test_where_a_template_is_found(
    files: dict[str, Any], tmp_path: Path, byte_level: dict[str, Any]
) -> None:
    template = ChatTemplate.load(packed(tmp_path, {"tokenizer.json": byte_level, **files}))
    assert template is not None
    assert template.source == "one"


def test_no_template(tmp_path: Path, byte_level: dict[str, Any]) -> None:
    files = {"tokenizer.json": byte_level, "config.json": {"model_type": "mistral"}}
    assert ChatTemplate.load(packed(tmp_path, files)) is None


def word_piece() -> str:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).to_str()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "has no tokenizer (tokenizer.json, tokenizer.model, or vocab.json with merges.txt)"),
        ({"tokenizer.json": "{"}, "tokenizer.json is not a tokenizer"),
        ({"tokenizer.json": ""}, "tokenizer.json is not a tokenizer"),
        ({"tokenizer.json": word_piece}, "of a kind picoedge does not know"),
        ({"tokenizer.model": b"IQ== 0\nIg== 1\n"}, "tokenizer.model is not a SentencePiece model"),
        ({"tokenizer.model": b""}, "tokenizer.model is not a SentencePiece model"),
        ({"tokenizer_config.json": "[1]"}, "tokenizer_config.json does not hold a JSON object"),
        ({"tokenizer_config.json": "[" * 100_000}, "tokenizer_config.json is not JSON"),
        ({"generation_config.json": "nonsense"}, "generation_config.json is not JSON"),
        (
            {
                "tokenizer.model": lambda: trained_sentencepiece(False),
                "tokenizer_config.json": {"added_tokens_decoder": {"x": {"content": "y"}}},
            },
            "damaged added tokens",
        ),
    ],
)
def test_damaged_folders_are_refused(files: dict[str, Any], says: str, tmp_path: Path) -> None:
    made = {name: value() if callable(value) else value for name, value in files.items()}
    with pytest.raises(TextError) as caught:
        packed(tmp_path, made)
    assert says in str(caught.value)


def test_a_file_of_another_program_does_not_hide_the_tokenizer(
    tmp_path: Path, byte_level: dict[str, Any]
) -> None:
    padded = json.dumps(byte_level) + " " * (13 << 20)  # large enough to prefer tokenizer.model
    files = {"tokenizer.json": padded, "tokenizer.model": b"IQ== 0\n"}
    assert loaded(tmp_path, files).encode(END) == [2]


def test_beside_a_large_tokenizer_json_the_model_counts(tmp_path: Path) -> None:
    head = '{"added_tokens": [], "model": {' + " " * (13 << 20)
    files = {"tokenizer.json": head, "tokenizer.model": trained_sentencepiece(False)}
    pack = packed(tmp_path, files)
    assert not (pack / "tokenizer.json").exists()
    assert load_tokenizer(pack).vocab_size == 800


PANICS = {
    "charsmap": ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}),
    "empty pattern": (
        "normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "x"}
    ),
    "endless regex": (
        "pre_tokenizer",
        {
            "type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
            "invert": False,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PANICS)
def test_a_tokenizer_that_makes_its_library_panic_is_refused(
    case: str, tmp_path: Path, byte_level: dict[str, Any]
) -> None:
    key, value = PANICS[case]
    with pytest.raises(TextError) as caught:
        packed(tmp_path, {"tokenizer.json": {**byte_level, key: value}})
    assert str(tmp_path / "model" / "tokenizer.json") in caught.value.message
    assert "get the file again" in caught.value.hint
    assert list((tmp_path / "pack").iterdir()) == []


@pytest.mark.parametrize("case", PANICS)
def test_a_panic_in_a_pack_is_a_text_error(
    case: str, tmp_path: Path, byte_level: dict[str, Any]
) -> None:
    pack = packed(tmp_path, {"tokenizer.json": byte_level})
    key, value = PANICS[case]
    (pack / "tokenizer.json").write_text(json.dumps({**byte_level, key: value}), encoding="utf-8")
    with pytest.raises(TextError) as caught:
        load_tokenizer(pack).encode("a" * 64 + "!")
    assert str(pack / "tokenizer.json") in caught.value.message


@pytest.mark.parametrize("kind", ["json", "sentencepiece"])
def test_a_token_that_a_template_puts_between_turns_is_no_text(
    kind: str, tmp_path: Path, byte_level: dict[str, Any]
) -> None:
    """Fine-tuners add such tokens as plain text: typed, one would begin a turn."""
    source = (
        "{% for m in messages %}<|turn|>{{ m.role }}\n<think>{{ m.content }}<|turn|>{% endfor %}"
    )
    added = {"<|turn|>": 801, "<think>": 802}
    files: dict[str, Any] = {"chat_template.jinja": source}
    if kind == "json":
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        tokens = [{"id": i, "content": t, **plain, "special": False} for t, i in added.items()]
        made = {**byte_level, "added_tokens": [*byte_level["added_tokens"], *tokens]}
        made["model"] = {
            **made["model"], "vocab": {**made["model"]["vocab"], **added}
        }  # fmt: skip
        files["tokenizer.json"] = made
    else:
        decoder = {str(i): {"content": text, "special": False} for text, i in added.items()}
        files["tokenizer.model"] = trained_sentencepiece(False)
        files["tokenizer_config.json"] = {**SENTENCEPIECE_CONFIG, "added_tokens_decoder": decoder}
    tokenizer = loaded(tmp_path, files)
    assert tokenizer.encode("<|turn|>", add_bos=False) == [801]
    assert tokenizer.decode([801, 802]) == "<think>"
    assert 801 in tokenizer.eos_ids  # nothing else ends an answer
    typed = tokenizer.encode("<|turn|><think>", add_bos=False, parse_special=False)
    assert (801 in typed, typed[-1]) == (False, 802)
