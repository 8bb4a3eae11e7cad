"""GGUF metadata to tokenizer files: small trained tokenizers, and metadata that is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_models import (
    CONTROL,
    END,
    SAMPLES,
    START,
    USER_DEFINED,
    bpe_metadata,
    load_sentencepiece,
    sentencepiece_metadata,
    trained_bpe,
    trained_sentencepiece,
)

from picoedge.errors import TextError
from picoedge.text.export.export import write_from_gguf
from picoedge.text.template.template import ChatTemplate
from picoedge.text.tokenizer.base import Tokenizer
from picoedge.text.tokenizer.load import load_tokenizer


def built(metadata: dict[str, Any], folder: Path) -> Tokenizer:
    write_from_gguf(metadata, folder)
    return load_tokenizer(folder)


def transformers_bpe(pre_tokenizer: Any) -> Any:
    """The trained BPE as transformers would run it, its words cut by `pre_tokenizer`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    model = trained_bpe()
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    tokenizer = Tokenizer(models.BPE(model["vocab"], merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", START, END])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def word_cutters() -> dict[str, Any]:
    from tokenizers import Regex, pre_tokenizers

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    cl100k = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(cl100k, "isolated")
    return {
        "gpt-2": plain,
        "smollm": pre_tokenizers.Sequence([digits, plain]),
        "dbrx": pre_tokenizers.Sequence([split, letters]),
    }


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "dbrx"])
def test_byte_level_equals_transformers(pre: str, tmp_path: Path) -> None:
    ours, oracle = built(bpe_metadata(pre), tmp_path), transformers_bpe(word_cutters()[pre])
    for text in [*SAMPLES, "a<tool>b", f"x{END}\n{START} y"]:
        ids = ours.encode(text)
        assert ids == oracle(text, add_special_tokens=False).input_ids
        assert ours.decode(ids, skip_special=False) == oracle.decode(
            ids, clean_up_tokenization_spaces=False
        )


@pytest.mark.parametrize("pre", ["default", "llama-bpe", "qwen2", "tekken", "gpt-4o", "falcon"])
def test_every_cut_keeps_every_byte(pre: str, tmp_path: Path) -> None:
    tokenizer = built(bpe_metadata(pre), tmp_path)
    text = "Plain CamelCase text,  1234567 don't\n\n\tñ 中文 👩‍🚀 <|im_end|>"
    ids = tokenizer.encode(text, add_bos=False, parse_special=False)
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text.encode())


def test_pretokenizers_differ_where_they_should(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    together = built(bpe_metadata("gpt-2"), tmp_path / "a").encode("1234567890")
    apart = built(bpe_metadata("smollm"), tmp_path / "b").encode("1234567890")
    assert len(apart) == 10 > len(together)


def test_llama3_begins_with_bos_and_qwen2_composes(tmp_path: Path) -> None:
    assert built(bpe_metadata("llama-bpe"), tmp_path).encode("") == [1]
    said = {"tokenizer.ggml.add_bos_token": False}
    assert built(bpe_metadata("llama-bpe", **said), tmp_path).encode("") == []
    qwen = built(bpe_metadata("qwen2"), tmp_path)
    assert qwen.encode("e\u0301") == qwen.encode("\u00e9")


def test_special_names_in_untrusted_text_stay_text(tmp_path: Path) -> None:
    bpe = built(bpe_metadata(), tmp_path)
    assert bpe.encode(END) == [2]
    assert 2 not in bpe.encode(f"a{END}b", parse_special=False)
    tool = bpe.encode("<tool>", parse_special=False)
    assert [bpe.decode(tool), len(tool)] == ["<tool>", 1]  # no control token: always matched


def test_an_end_of_turn_marked_as_text_is_special_all_the_same(tmp_path: Path) -> None:
    types = bpe_metadata()["tokenizer.ggml.token_type"]
    metadata = bpe_metadata(**{
        "tokenizer.ggml.token_type": [CONTROL, CONTROL, USER_DEFINED, *types[3:]],
        "tokenizer.ggml.eos_token_id": 0,
    })  # fmt: skip
    tokenizer = built(metadata, tmp_path)
    assert tokenizer.eos_ids == {0, 2}
    assert 2 not in tokenizer.encode(END, parse_special=False)
    assert tokenizer.decode([2]) == ""


@pytest.mark.parametrize("user_defined", [(), ("▁▁", "▁▁▁", "\n", "\t", "<b>", "</b>")])
def test_sentencepiece_equals_the_model_it_came_from(
    user_defined: tuple[str, ...], tmp_path: Path
) -> None:
    ours = built(sentencepiece_metadata(False, user_defined), tmp_path)
    oracle = load_sentencepiece(trained_sentencepiece(False, user_defined))
    for text in [*SAMPLES, "a <b>bold</b>\t\t\n\n   x", "\U0001f9ff unseen ⸙"]:
        ids = ours.encode(text, add_bos=False, parse_special=False)
        assert ids == oracle.encode(text)
        assert ours.decode(ids) == oracle.decode(ids)
        assert ours.vocab_size == oracle.vocab_size()


def test_sentencepiece_with_a_space_of_its_own(tmp_path: Path) -> None:
    ours = built(sentencepiece_metadata(True), tmp_path)
    oracle = load_sentencepiece(trained_sentencepiece(True))
    for text in SAMPLES:
        ids = ours.encode(text, add_bos=False, parse_special=False)
        assert ids == oracle.encode(text)
        assert ours.decode(ids) == text
    turn = oracle.piece_to_id("<end_of_turn>")
    both = [*oracle.encode("a"), turn, *oracle.encode("b")]
    assert ours.encode("a<end_of_turn>b", add_bos=False) == both


def test_sentencepiece_control_tokens(tmp_path: Path) -> None:
    tokenizer = built(sentencepiece_metadata(), tmp_path)
    turn = tokenizer.encode("<end_of_turn>", add_bos=False)
    assert tokenizer.eos_ids == {2, *turn}
    assert tokenizer.encode("</s>x</s>")[:2] == [1, 2]
    untrusted = tokenizer.encode("</s><end_of_turn>", add_bos=False, parse_special=False)
    assert not {2, *turn} & set(untrusted)
    assert tokenizer.decode(untrusted) == "</s><end_of_turn>"


def test_numpy_arrays_do_as_well_as_lists(tmp_path: Path) -> None:
    metadata = sentencepiece_metadata()
    for key in ("scores", "token_type"):
        metadata[f"tokenizer.ggml.{key}"] = np.asarray(metadata[f"tokenizer.ggml.{key}"])
    tokens = np.asarray(metadata["tokenizer.ggml.tokens"], dtype=object)
    ours = built({**metadata, "tokenizer.ggml.tokens": tokens}, tmp_path)
    oracle = load_sentencepiece(trained_sentencepiece(False))
    assert ours.encode("no difference", add_bos=False) == oracle.encode("no difference")


def test_lone_surrogates_become_replacement_characters(tmp_path: Path) -> None:
    for metadata in (bpe_metadata(), sentencepiece_metadata()):
        tokenizer = built(metadata, tmp_path)
        assert tokenizer.decode(tokenizer.encode("a\udc80b\ud83d\ude00")) == "a\ufffdb😀"


def test_ids_outside_the_vocabulary_decode_to_nothing(tmp_path: Path) -> None:
    for metadata in (bpe_metadata(), sentencepiece_metadata()):
        tokenizer = built(metadata, tmp_path)
        assert tokenizer.decode([10**6, -1, 2**40]) == ""


def test_the_template_comes_along(tmp_path: Path) -> None:
    write_from_gguf(bpe_metadata(), tmp_path)
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    assert template.render([{"role": "user", "content": "hi"}]) == "hi"


@pytest.mark.parametrize(
    ("architecture", "begins"),
    [("qwen2", "<|im_start|>user\nhi<|im_end|>"), ("llama", "<|im_start|>user\n"), ("phi3", None)],
)
def test_a_missing_template_is_the_familys(
    architecture: str, begins: str | None, tmp_path: Path
) -> None:
    metadata = bpe_metadata(**{"general.architecture": architecture})
    del metadata["tokenizer.chat_template"]
    write_from_gguf(metadata, tmp_path)
    template = ChatTemplate.load(tmp_path)
    if begins is None:
        assert template is None
    else:
        assert template is not None
        assert template.render([{"role": "user", "content": "hi"}]).startswith(begins)


DAMAGED: list[tuple[Callable[..., dict[str, Any]], dict[str, Any], str]] = [
    (bpe_metadata, {"model": None}, "has no tokenizer"),
    (bpe_metadata, {"model": "bert"}, "'bert' is not supported (supported: llama"),
    (bpe_metadata, {"model": 3}, "tokenizer.ggml.model: not a text"),
    (bpe_metadata, {"pre": "marvellous-bpe"}, "'marvellous-bpe' is not known (known: default"),
    (bpe_metadata, {"tokens": None}, "tokenizer.ggml.tokens: missing or empty"),
    (bpe_metadata, {"tokens": "abc"}, "tokenizer.ggml.tokens: missing or empty"),
    (bpe_metadata, {"token_type": [1, 1]}, "tokenizer.ggml.token_type: not 701 values"),
    (bpe_metadata, {"token_type": [1e9] * 701}, "tokenizer.ggml.token_type"),
    (bpe_metadata, {"merges": None}, "tokenizer.ggml.merges: missing or empty"),
    (bpe_metadata, {"merges": ["zz9 yy8"]}, "tokenizer.json is not a tokenizer"),
    (bpe_metadata, {"merges": ["a b c"]}, "tokenizer.json is not a tokenizer"),
    (bpe_metadata, {"merges": [1, 2]}, "tokenizer.ggml.merges: not a list of texts"),
    (bpe_metadata, {"eos_token_id": 2.0}, "2.0 is not a token of 701"),
    (bpe_metadata, {"bos_token_id": "<s>"}, "'<s>' is not a token of 701"),
    (sentencepiece_metadata, {"scores": [1.0]}, "tokenizer.ggml.scores: not 800 values"),
    (sentencepiece_metadata, {"scores": [float("nan")] * 800}, "tokenizer.ggml.scores"),
    (sentencepiece_metadata, {"scores": ["x"] * 800}, "tokenizer.ggml.scores"),
    (sentencepiece_metadata, {"scores": [1e300] * 800}, "tokenizer.ggml.scores"),
    (sentencepiece_metadata, {"unknown_token_id": "x"}, "'x' is not a token of 800"),
]


@pytest.mark.parametrize(("sound", "changes", "says"), DAMAGED)
def test_damaged_metadata_is_refused(
    sound: Callable[..., dict[str, Any]], changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    metadata = sound(**{f"tokenizer.ggml.{key}": value for key, value in changes.items()})
    with pytest.raises(TextError) as caught:
        write_from_gguf({k: v for k, v in metadata.items() if v is not None}, tmp_path)
    assert says in str(caught.value)


def test_missing_byte_tokens_are_refused(tmp_path: Path) -> None:
    metadata = sentencepiece_metadata()
    at = metadata["tokenizer.ggml.tokens"].index("<0x41>")
    metadata["tokenizer.ggml.tokens"][at] = "<0xZZ>"
    with pytest.raises(TextError, match="lacks some byte tokens"):
        write_from_gguf(metadata, tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"model": 1}'])
def test_damaged_packs_are_refused(content: bytes, tmp_path: Path) -> None:
    write_from_gguf(bpe_metadata(), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        sound = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TextError, match=name):
            load_tokenizer(tmp_path)
        (tmp_path / name).write_bytes(sound)


def test_a_pack_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"has no tokenizer \(tokenizer.json or tokenizer.model\)"):
        load_tokenizer(tmp_path)


def test_a_damaged_sentencepiece_model(tmp_path: Path) -> None:
    write_from_gguf(sentencepiece_metadata(), tmp_path)
    model = tmp_path / "tokenizer.model"
    for content in (b"", b"junk", model.read_bytes()[:5000]):
        model.write_bytes(content)
        with pytest.raises(TextError, match="not a SentencePiece model"):
            load_tokenizer(tmp_path)
