"""Tiny models with a tokenizer, as people bring them: a GGUF file and a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tiny_model
from gguf import GGUFWriter
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from picoedge.registry.packing import pack_model


def byte_tokens() -> list[str]:
    """The 256 characters that stand for bytes in byte-level BPE."""
    return sorted(ByteLevel.alphabet())


def write_folder(folder: Path) -> Path:
    """A Hugging Face folder: the tiny model and a byte-level tokenizer."""
    tiny_model.write_tiny_model(folder)
    vocabulary = {token: i for i, token in enumerate(byte_tokens())}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_gguf(path: Path, *, seed: int = 1, licence: str = "MIT", template: str = "") -> Path:
    """A one-layer Llama in f32 with a byte-level tokenizer; `seed` makes another model of it."""
    hidden, inner, heads, vocabulary = 64, 96, 2, 257
    rng = np.random.default_rng(seed)
    writer = GGUFWriter(path, "llama")
    writer.add_license(licence)
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*byte_tokens(), "ab"])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    if template:
        writer.add_chat_template(template)
    shapes = {
        "token_embd": (vocabulary, hidden),
        "output_norm": (hidden,),
        "blk.0.attn_norm": (hidden,),
        "blk.0.ffn_norm": (hidden,),
        "blk.0.attn_q": (hidden, hidden),
        "blk.0.attn_k": (hidden, hidden),
        "blk.0.attn_v": (hidden, hidden),
        "blk.0.attn_output": (hidden, hidden),
        "blk.0.ffn_gate": (inner, hidden),
        "blk.0.ffn_up": (inner, hidden),
        "blk.0.ffn_down": (hidden, inner),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def packed_tiny(folder: Path) -> Path:
    """The tiny model with a tokenizer, packed in 8 bits: three layers, and a head of its own."""
    write_folder(folder / "tiny")
    pack_model(folder / "tiny", folder / "tiny.pico", bits=8)
    return folder / "tiny.pico"
