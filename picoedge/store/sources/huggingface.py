"""Hugging Face source: the safetensors files of a model folder under canonical names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from picoedge.config import ModelConfig, model_sampling
from picoedge.errors import ModelError, UnsupportedError
from picoedge.fields import Fields
from picoedge.files import (
    naming,
    read_object,
    reading,
    source_fingerprint,
)
from picoedge.store.encodings import ENCODINGS, Encoding
from picoedge.store.safetensors import TensorEntry, read_header, require_floats
from picoedge.store.sources.hf_config import (
    huggingface_config,
    may_have_biases,
    text_config,
    ties_within,
)
from picoedge.store.sources.refusals import no_weights, refuse_folder
from picoedge.store.sources.tensors import ModelSource, SourceTensor

# The index of 1,138 tensors, each quantized in 4 parts, has 600 KB. One character beyond U+FFFF
# makes up to 8 bytes of memory of each byte of a file: 4 MB stay below 50.
_MAX_CONFIG, _MAX_INDEX = 1 << 22, 1 << 22
_HINT = "the folder is incomplete or damaged: get it again"
_INDEX = "model.safetensors.index.json"
_KEPT_SUFFIXES = (".json", ".safetensors", ".model", ".jinja", ".txt")
HF_LAYER_NAMES = {
    "q": "self_attn.q_proj.weight", "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight", "o": "self_attn.o_proj.weight",
    "gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight", "down": "mlp.down_proj.weight",
    "q_bias": "self_attn.q_proj.bias", "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight", "k_norm": "self_attn.k_norm.weight",
    "input_norm": "input_layernorm.weight",
}  # fmt: skip
_Q_BIAS = f".{HF_LAYER_NAMES['q_bias']}"
_FUSED = {
    **dict.fromkeys(("q", "k", "v"), "self_attn.qkv_proj.weight"),
    **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj.weight"),
}
# `post_attention_layernorm` precedes the FFN in most families, but follows attention in Gemma.
HF_PLAIN_NORMS = {"pre_ffn_norm": "post_attention_layernorm.weight"}
HF_SANDWICH_NORMS = {
    "post_attention_norm": "post_attention_layernorm.weight",
    "pre_ffn_norm": "pre_feedforward_layernorm.weight",
    "post_ffn_norm": "post_feedforward_layernorm.weight",
}
_EMBED = "embed_tokens.weight"
# Parts of a model that see or hear, and what joins them to the text: passed over.
_OTHER_SENSES = re.compile(
    r"(model\.|language_model\.)?(vision\w*|visual|image\w*|multi_?modal\w*|mm_projector|audio\w*|"
    r"embed_vision|embed_audio|connector|merger|patch_merger|speech\w*|view_seperator|projector)"
    r"(\..*)?"
)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]{0,199}", re.ASCII)  # no path, and not too long
_LEFT_OVER = re.compile(r".*(rotary_emb\.inv_freq|rotary_pos_emb\.inv_freq|masked_bias)")
_LEFT_OVER_IF_TIED = re.compile(rf"{_LEFT_OVER.pattern}|(.*\.)?lm_head\.weight")
_QUANTIZED = re.compile(
    r".*\.(qweight|qzeros|g_idx|scales|weight_scale\w*|weight_packed|absmax|SCB|q_weight|biases|"
    r"weight\.(absmax|quant_\w+|nested_\w+))"
)
_FP8 = ("F8_E4M3", "F8_E5M2")


class FolderSource(ModelSource):
    """A Hugging Face folder."""

    kind = "huggingface"

    def __init__(self, path: Path) -> None:
        self.name, self.metadata = path.absolute().name, {}
        refuse_folder(path)
        with naming(path):
            fields = _load_config(path)
            text = text_config(fields)
            config = huggingface_config(text)
        tensors = _raw_tensors(path)
        raw = {t.name: t for t in tensors if not _OTHER_SENSES.fullmatch(t.name)}
        self.passed_over = len(tensors) - len(raw)
        self._prefix, self._head = _prefix(raw, path), _head_name(raw)
        if may_have_biases(text) and not any(name.endswith(_Q_BIAS) for name in raw):
            config = replace(config, qkv_bias=False)
        if self._head not in raw and ties_within(fields):
            config = replace(config, tie_word_embeddings=True)
        if self._head not in raw and not config.tie_word_embeddings:
            _refuse_headless(fields, path)
        harmless = _LEFT_OVER_IF_TIED if config.tie_word_embeddings else _LEFT_OVER
        stored = {t.name: _readable(t) for t in raw.values() if not harmless.fullmatch(t.name)}
        self._is_fused = config.architecture == "phi3"
        self._norms = HF_SANDWICH_NORMS if config.sandwich_norm else HF_PLAIN_NORMS
        super().__init__(path, config, stored, self._name_in_files, harmless)
        self.fingerprint = source_fingerprint(_relevant_files(path))
        self.sampling = _sampling(path)

    def tensor(self, name: str) -> SourceTensor:
        """See `ModelSource.tensor`."""
        # Gemma's norms multiply by 1 + weight.
        plus_one = self.config.architecture == "gemma3" and name.endswith("_norm")
        return replace(super().tensor(name), added=1.0 if plus_one else 0.0)

    def _name_in_files(self, name: str) -> str:
        whole = {
            "embed": f"{self._prefix}embed_tokens.weight",
            "final_norm": f"{self._prefix}norm.weight",
            "head": self._head,
        }
        if name in whole:
            return whole[name]
        _, layer, kind = name.split(".")
        fused = _FUSED if self._is_fused else {}
        return f"{self._prefix}layers.{layer}.{(HF_LAYER_NAMES | self._norms | fused)[kind]}"


def read_folder_config(path: Path) -> ModelConfig:
    """The config in a folder whose weights may be missing. Raises as `FolderSource`."""
    with naming(path):
        return huggingface_config(text_config(_load_config(path)))


def _load_config(path: Path) -> Fields:
    config = path / "config.json"
    if not config.is_file():
        ggufs = sorted(path.glob("*.gguf"))
        hint = f"did you mean {ggufs[0]}?" if ggufs else "a model folder holds config.json"
        raise ModelError(f"{path} has no config.json", hint)
    return read_object(config, _MAX_CONFIG, _HINT)


def _sampling(path: Path) -> dict[str, float]:
    """The options of `generation_config.json`; it is advice, so a damaged file gives none."""
    try:
        values = read_object(path / "generation_config.json", _MAX_CONFIG, _HINT).values
    except ModelError:
        return {}
    found = model_sampling(values)
    if values.get("do_sample") is False:  # then `transformers` uses none of the others
        found = {name: found[name] for name in ("repeat_penalty",) if name in found}
    return found


def _raw_tensors(path: Path) -> list[SourceTensor]:
    """Tensors of all files of the model. Raises ModelError on a duplicate name."""
    tensors: dict[str, SourceTensor] = {}
    for file in _weight_files(path):
        for entry in read_header(file):
            tensor = _source_tensor(entry)
            if tensor.name in tensors:
                raise ModelError(
                    f"tensor {tensor.name} is in both {tensors[tensor.name].path.name} and "
                    f"{file.name} of {path}",
                    _HINT,
                )
            tensors[tensor.name] = tensor
    return list(tensors.values())


def _weight_files(path: Path) -> list[Path]:
    if (path / _INDEX).exists():
        return _indexed_files(path)
    if (path / "model.safetensors").exists():
        return [path / "model.safetensors"]
    files = [f for f in sorted(path.glob("*.safetensors")) if not f.name.startswith("consolidated")]
    if files:
        return files
    raise no_weights(path)


def _indexed_files(path: Path) -> list[Path]:
    names = read_object(path / _INDEX, _MAX_INDEX, _HINT).get("weight_map", dict).values()
    for name in names:
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise ModelError(f"{path / _INDEX} names a file {str(name)[:80]!r}", _HINT)
    files = [path / name for name in sorted(set(names))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(
            f"{path}: {len(missing)} of {len(files)} weight files are missing: {missing[0]} …",
            _HINT,
        )
    return files


def _prefix(names: Mapping[str, SourceTensor], path: Path) -> str:
    """The prefix of the decoder's names: "model.", "language_model.model.", nothing …"""
    found = [name.removesuffix(_EMBED) for name in names if name.endswith(_EMBED)]
    whole = [prefix for prefix in found if f"{prefix}norm.weight" in names]
    if not found:
        raise ModelError(f"{path}: tensor model.{_EMBED} is missing", _HINT)
    return min(whole or found, key=len)


def _refuse_headless(fields: Fields, path: Path) -> None:
    heads = fields.get("architectures", list, [])
    if heads and all(str(name).endswith("Model") for name in heads):
        raise UnsupportedError(
            f"{path}: {str(heads[0])[:64]} has no language model head",
            "it embeds texts and does not write any: take a ...ForCausalLM of its family",
        )


def _head_name(names: Mapping[str, SourceTensor]) -> str:
    found = [name for name in names if name == "lm_head.weight" or name.endswith(".lm_head.weight")]
    return min(found, key=len, default="lm_head.weight")


def _relevant_files(path: Path) -> list[Path]:
    """Files that a pack is made of, the config first: weights, tokenizer, templates."""
    with reading(path):
        files = sorted(f for f in path.iterdir() if f.suffix in _KEPT_SUFFIXES and f.is_file())
    return sorted(files, key=lambda f: f.name != "config.json")


def _source_tensor(entry: TensorEntry) -> SourceTensor:
    encoding = ENCODINGS.get(entry.dtype) or Encoding(entry.dtype, 1, 0)
    return SourceTensor(
        entry.name, entry.shape, encoding, entry.path, entry.offset, entry.nbytes
    )  # fmt: skip


def _readable(tensor: SourceTensor) -> SourceTensor:
    """The tensor itself. Raises UnsupportedError on its dtype, ModelError on a wrong size."""
    dtype = tensor.encoding.name
    if dtype in _FP8 or _QUANTIZED.fullmatch(tensor.name):
        raise UnsupportedError(
            f"{tensor.path}: tensor {tensor.name} is of quantized weights"
            f"{' (FP8)' if dtype in _FP8 else ''}, which are not supported",
            "supported: f32, f16 and bf16 weights; take those, or a GGUF of the model",
        )
    require_floats(
        TensorEntry(tensor.path, tensor.name, dtype, tensor.shape, tensor.offset, tensor.nbytes)
    )
    return tensor
