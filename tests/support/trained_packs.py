"""f32 packs of weights in memory, as training writes them, with a SentencePiece tokenizer."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

from sentencepiece import SentencePieceTrainer

from picoedge.config import ModelConfig
from picoedge.kernels.arrays import F32
from picoedge.store.encodings import ENCODINGS
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.tensors import ModelSource, SourceTensor
from picoedge.text.tokenizer.base import SENTENCEPIECE_FILE, AddedToken, TextSettings
from picoedge.train.presets import preset
from picoedge.train.state.layout import Layout

_TEXT = Path(__file__).parents[1] / "data/words.txt"
TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


class RawSource(ModelSource):
    """Weights by canonical name, written to one file of raw f32."""

    kind, name, fingerprint, metadata = "trained", "trained", "", {}

    def __init__(self, config: ModelConfig, tensors: Mapping[str, F32], path: Path) -> None:
        stored, at, f32 = dict[str, SourceTensor](), 0, ENCODINGS["F32"]
        with path.open("wb") as file:
            for name, values in tensors.items():
                file.write(values.tobytes())
                stored[name] = SourceTensor(name, values.shape, f32, path, at, values.nbytes)
                at += values.nbytes
        super().__init__(path, config, stored, str, re.compile("none"))


def canonical(config: ModelConfig, weights: Mapping[str, F32]) -> dict[str, F32]:
    """A trained model's weights under the packer's names: q, k and v apart, and gate and up."""
    dim, inner = config.head_dim, config.intermediate_size
    q, kv = config.num_attention_heads * dim, config.num_key_value_heads * dim
    parts = {
        "qkv": {"q": slice(0, q), "k": slice(q, q + kv), "v": slice(q + kv, q + 2 * kv)},
        "bias": {"q_bias": slice(0, q), "k_bias": slice(q, q + kv), "v_bias": slice(q + kv, None)},
        "gate_up": {"gate": slice(0, inner), "up": slice(inner, None)},
    }
    tensors = {"embed": weights["embedding"], "final_norm": weights["final_norm"]}
    for name, values in weights.items():
        layer, _, kind = name.rpartition(".")
        if layer:
            for part, rows in parts.get(kind, {kind: slice(None)}).items():
                tensors[f"layers.{layer}.{part}"] = values[rows]
    return tensors


def pack_weights(
    config: ModelConfig, weights: Mapping[str, F32], folder: Path, *, tokenizer: bool = False
) -> Pack:
    """A pack of these weights, named as in training, at `folder`/trained.pico."""
    folder.mkdir(parents=True, exist_ok=True)
    source = RawSource(config, canonical(config, weights), folder / "weights.bin")
    write_text = write_sentencepiece if tokenizer else None
    pack_source(source, folder / "trained.pico", bits=32, write_text=write_text)
    (folder / "weights.bin").unlink()
    return Pack.open(folder / "trained.pico")


def trained_pack(folder: Path, name: str = "1m", seed: int = 0) -> Pack:
    """A pack of a preset's weights as training begins with them, and a tokenizer."""
    layout = Layout.of(preset(name))
    flat = layout.initial(seed)
    weights = {name: tensor.of(flat) for name, tensor in layout.tensors.items()}
    return pack_weights(layout.config, weights, folder, tokenizer=True)


def write_sentencepiece(source: ModelSource, folder: Path) -> None:
    """A BPE tokenizer with bytes, trained on a text of its own, and a template."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXT.read_text(encoding="utf-8").splitlines()),
        model_writer=model,
        vocab_size=source.config.vocab_size,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / SENTENCEPIECE_FILE).write_bytes(model.getvalue())
    settings = TextSettings(
        bos_id=1,
        eos_ids=frozenset({2}),
        add_bos=True,
        space_prefix="always",
        bos_token="<s>",
        eos_token="</s>",
        added={
            0: AddedToken("<unk>", True),
            1: AddedToken("<s>", True),
            2: AddedToken("</s>", True),
        },
    )
    settings.write(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
