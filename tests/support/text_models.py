"""Small tokenizers, trained here on the hard text, and the GGUF metadata they would come in."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data"
HARD_TEXT = (DATA / "hard_text.txt").read_bytes().decode("utf-8")
SAMPLES = [HARD_TEXT, *HARD_TEXT.split("\n"), "", " ", "\n", "  two", "a\x00b", "tail  "]
END, START = "<|im_end|>", "<|im_start|>"

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@functools.cache
def trained_bpe() -> dict[str, Any]:
    """`model` of a tokenizer.json: byte-level BPE, the control tokens first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        special_tokens=["<|endoftext|>", START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(HARD_TEXT.split("\n") * 3, trainer)
    return json.loads(tokenizer.to_str())["model"]


def bpe_metadata(pre: str = "smollm", **changes: Any) -> dict[str, Any]:
    """GGUF metadata of `trained_bpe`, with one user-defined token at the end."""
    model = trained_bpe()
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), "<tool>"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL] * 3 + [NORMAL] * (len(tokens) - 4) + [USER_DEFINED],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
        **changes,
    }


@functools.cache
def trained_sentencepiece(dummy_prefix: bool, user_defined: tuple[str, ...] = ()) -> bytes:
    """A `tokenizer.model`: BPE with byte fallback, as Llama's and Gemma's are."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(HARD_TEXT.split("\n") * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=800,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        control_symbols=["<start_of_turn>", "<end_of_turn>"],
        user_defined_symbols=list(user_defined),
        minloglevel=2,
    )
    return model.getvalue()


def load_sentencepiece(model: bytes) -> Any:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    processor.load_from_serialized_proto(model)
    return processor


def sentencepiece_metadata(
    dummy_prefix: bool = False, user_defined: tuple[str, ...] = (), **changes: Any
) -> dict[str, Any]:
    """GGUF metadata of `trained_sentencepiece`, written as converters write it."""
    processor = load_sentencepiece(trained_sentencepiece(dummy_prefix, user_defined))
    ids = range(processor.vocab_size())
    tokens = [processor.id_to_piece(i) for i in ids]
    types = [
        UNKNOWN if processor.is_unknown(i)
        else CONTROL if processor.is_control(i)
        else BYTE if processor.is_byte(i)
        else USER_DEFINED if tokens[i] in user_defined
        else NORMAL
        for i in ids
    ]  # fmt: skip
    spaced = [t.replace("▁", " ") if t in user_defined else t for t in tokens]
    return {
        "general.architecture": "gemma3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": spaced,
        "tokenizer.ggml.scores": [processor.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": dummy_prefix,
        **changes,
    }
