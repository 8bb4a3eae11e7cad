"""The reference: `transformers` in f32 on the weights that the GGUF dequantizes to.

One job (JSON on stdin): `job_reference`. The model is built from the GGUF's own metadata, by the
published conventions of the format: rotary q and k rows of the llama architecture are stored
interleaved, and Gemma's norms with 1 already added.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import agreement
from bench.peers_cache import new_cache
from picoedge.kernels.arrays import F32

_TENSORS = {
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "attn_norm.weight": "input_layernorm.weight",
}
_LLAMA = {"ffn_norm.weight": "post_attention_layernorm.weight"}
_GEMMA3 = {
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
}
_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output.weight": "lm_head.weight",
    "output_norm.weight": "model.norm.weight",
}


class Gguf:
    """Metadata and dequantized tensors of one GGUF."""

    def __init__(self, path: str) -> None:
        self._gguf = importlib.import_module("gguf")
        self._reader = self._gguf.GGUFReader(path)
        self.architecture = str(self._reader.fields["general.architecture"].contents())
        self.names = [tensor.name for tensor in self._reader.tensors]

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the architecture's own section."""
        field = self._reader.fields.get(f"{self.architecture}.{key}")
        return default if field is None else field.contents()

    def tensors(self) -> Iterator[tuple[str, F32]]:
        """(name, f32 array, rows first) of each tensor."""
        for tensor in self._reader.tensors:
            values = self._gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            yield tensor.name, np.asarray(values, dtype=np.float32)


def hugging_face_name(architecture: str, name: str) -> str | None:
    """The name of a GGUF's tensor in the state dict; None if it is no weight."""
    if name in _WHOLE:
        return _WHOLE[name]
    block, layer, rest = name.split(".", 2) if name.count(".") >= 2 else ("", "", "")
    table = {**_TENSORS, **(_GEMMA3 if architecture == "gemma3" else _LLAMA)}
    return f"model.layers.{layer}.{table[rest]}" if block == "blk" and rest in table else None


def halves_from_pairs(rows: F32, heads: int) -> F32:
    """Rotary rows of a llama GGUF (pairs side by side) in the order that rotates halves.

    rows f32 [heads * head_dim, hidden]: within a head, rows 0, 2, 4, … come first.
    """
    paired = rows.reshape(heads, -1, 2, rows.shape[-1])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(rows.shape)


def state_dict(source: Gguf) -> dict[str, Any]:
    """Weights by Hugging Face's names, torch tensors f32."""
    torch = importlib.import_module("torch")
    heads = {"attn_q": source.get("attention.head_count")}
    heads["attn_k"] = source.get("attention.head_count_kv", heads["attn_q"])
    state: dict[str, Any] = {}
    for name, values in source.tensors():
        target = hugging_face_name(source.architecture, name)
        kind = name.split(".")[-2]
        if source.architecture == "llama" and kind in heads:
            values = halves_from_pairs(values, heads[kind])
        elif source.architecture == "gemma3" and kind.endswith("norm"):
            values = values - np.float32(1)
        if target is not None:
            state[target] = torch.tensor(values)
    return state


def _common(source: Gguf, vocab: int) -> dict[str, Any]:
    heads = source.get("attention.head_count")
    hidden = source.get("embedding_length")
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": source.get("feed_forward_length"),
        "num_hidden_layers": source.get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": source.get("attention.head_count_kv", heads),
        "head_dim": source.get("attention.key_length", hidden // heads),
        "max_position_embeddings": source.get("context_length"),
        "rms_norm_eps": source.get("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in source.names,
        "attn_implementation": "eager",
    }


def _llama(source: Gguf, values: dict[str, Any]) -> Any:
    transformers = importlib.import_module("transformers")
    theta = source.get("rope.freq_base", 10_000.0)
    config = transformers.LlamaConfig(**values, rope_theta=theta)
    return transformers.LlamaForCausalLM(config)


def _gemma3(source: Gguf, values: dict[str, Any]) -> Any:
    transformers = importlib.import_module("transformers")
    config = transformers.Gemma3TextConfig(
        **values,
        rope_theta=source.get("rope.freq_base", 1_000_000.0),
        rope_local_base_freq=10_000.0,
        query_pre_attn_scalar=values["head_dim"],
        sliding_window=source.get("attention.sliding_window"),
    )
    return transformers.Gemma3ForCausalLM(config)


def build(path: str) -> Any:
    """The model, f32, ready to run."""
    source = Gguf(path)
    state = state_dict(source)
    values = _common(source, len(state["model.embed_tokens.weight"]))
    model = {"llama": _llama, "gemma3": _gemma3}[source.architecture](source, values)
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = {"lm_head.weight"} if values["tie_word_embeddings"] else set()
    if unexpected or set(missing) - tied:
        raise SystemExit(f"the reference lacks {missing} and does not know {unexpected}")
    model.tie_weights()
    return model.eval().requires_grad_(False)


def logits_of(model: Any, ids: list[int]) -> Iterator[F32]:
    """Logits after each id, f32 [n, vocab], a few rows at a time."""
    torch = importlib.import_module("torch")
    hidden = model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    for at in range(0, len(ids), 64):
        yield model.lm_head(hidden[at : at + 64]).numpy()


def job_reference(
    path: str, threads: int, prompts: list[list[int]], n: int, folder: str, check: list[int]
) -> dict[str, float]:
    """Write the greedy continuation of each prompt, and its logits, into `folder`.

    Answers with the perplexity over the ids `check`, by which others can tell it is sound.
    """
    importlib.import_module("torch").set_num_threads(threads)
    model = build(path)
    texts = []
    for i, prompt in enumerate(prompts):
        ids, logits = greedy(model, prompt, n)
        np.save(Path(folder, f"logits-{i}.npy"), logits)
        texts.append({"ids": ids, "prompt": len(prompt)})
    agreement.write_texts(folder, texts)
    return {"perplexity": agreement.perplexity(check, logits_of(model, check))}


def greedy(model: Any, prompt: list[int], n: int) -> tuple[list[int], F32]:
    """(prompt and n tokens, the logits f32 [n, vocab] that chose them); nothing ends it early."""
    torch = importlib.import_module("torch")
    ids, rows, cache = list(prompt), [], new_cache(model)
    given = prompt
    for _ in range(n):
        out = model(input_ids=torch.tensor([given]), **cache)
        rows.append(out.logits[0, -1].numpy().copy())
        given = [int(rows[-1].argmax())]
        ids += given
    return ids, np.stack(rows)


def main() -> None:
    """Answer one request."""
    print(json.dumps(job_reference(**json.load(sys.stdin))))


if __name__ == "__main__":
    main()
