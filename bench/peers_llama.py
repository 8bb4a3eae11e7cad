"""llama.cpp at its best: its own C interface, no Python between two tokens.

Jobs (JSON on stdin): see the functions named `job_*`. It imports nothing but what the
measured process needs, since its memory is measured too.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

N_BATCH = 512  # llama.cpp's own default for a physical batch


def load_api() -> Any:
    """The package's ctypes layer."""
    return importlib.import_module("llama_cpp.llama_cpp")


class Peer:
    """One model and one context of llama.cpp."""

    def __init__(
        self, path: str, n_ctx: int, threads: int, flash: bool = False, *,
        api: Any = None, n_batch: int = N_BATCH,
    ) -> None:  # fmt: skip
        self.api, self._n_batch = api or load_api(), n_batch
        self._silent = self.api.llama_log_callback(lambda level, text, data: None)
        self.api.llama_log_set(self._silent, ctypes.c_void_p(0))
        self.api.llama_backend_init()
        params = self.api.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = self.api.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab = self.api.llama_model_get_vocab(self.model)
        self.n_vocab = int(self.api.llama_vocab_n_tokens(self.vocab))
        self.ctx = self._context(n_ctx, threads, flash)

    def _context(self, n_ctx: int, threads: int, flash: bool) -> Any:
        params = self.api.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = min(n_ctx, self._n_batch)
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        kinds = (self.api.LLAMA_FLASH_ATTN_TYPE_DISABLED, self.api.LLAMA_FLASH_ATTN_TYPE_ENABLED)
        params.flash_attn_type = kinds[flash]
        ctx = self.api.llama_init_from_model(self.model, params)
        if not ctx:
            raise SystemExit("llama.cpp cannot make a context")
        return ctx

    def forget(self) -> None:
        """Empty the cache of keys and values."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.ctx), True)

    def evaluate(self, tokens: Sequence[int]) -> None:
        """Append the tokens; logits of the last one are ready when this returns."""
        ids = (self.api.llama_token * len(tokens))(*tokens)
        for at in range(0, len(tokens), self._n_batch):
            part = ctypes.cast(
                ctypes.byref(ids, at * ctypes.sizeof(self.api.llama_token)),
                ctypes.POINTER(self.api.llama_token),
            )
            self._decode(self.api.llama_batch_get_one(part, min(self._n_batch, len(tokens) - at)))
        self.api.llama_synchronize(self.ctx)

    def _decode(self, batch: Any) -> None:
        status = self.api.llama_decode(self.ctx, batch)
        if status != 0:
            raise SystemExit(f"llama_decode returned {status}")

    def argmax(self) -> int:
        """The likeliest token after the last one evaluated."""
        import numpy as np

        logits = self.api.llama_get_logits_ith(self.ctx, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self.n_vocab,)).argmax())

    def logits(self, tokens: Sequence[int]) -> Iterator[Any]:
        """Logits after every token from an empty cache, f32 [n, vocab], batch by batch."""
        import numpy as np

        self.forget()
        step = 64  # bounds the memory of the logits
        batch = self.api.llama_batch_init(step, 0, 1)
        for at in range(0, len(tokens), step):
            part = tokens[at : at + step]
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i], batch.logits[i] = token, at + i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            self._decode(batch)
            pointer = self.api.llama_get_logits(self.ctx)
            yield np.ctypeslib.as_array(pointer, shape=(len(part), self.n_vocab))
        self.api.llama_batch_free(batch)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of plain text, with a beginning-of-sequence token where the model adds one."""
        raw = text.encode()
        room = len(raw) + 8
        ids = (self.api.llama_token * room)()
        n = self.api.llama_tokenize(self.vocab, raw, len(raw), ids, room, True, False)
        return list(ids[:n])

    def piece(self, token: int) -> bytes:
        """The bytes of one token."""
        room = ctypes.create_string_buffer(256)
        n = self.api.llama_token_to_piece(self.vocab, token, room, 256, 0, False)
        return room.raw[: max(n, 0)]


def job_info() -> dict[str, Any]:
    """What the library was built for."""
    return {"system": load_api().llama_print_system_info().decode()}


def job_tokenize(path: str, texts: list[str]) -> list[list[int]]:
    """Ids of each text."""
    peer = Peer(path, 64, 1)
    return [peer.tokenize(text) for text in texts]


def job_prefix(path: str, text: str, n_tokens: int) -> str:
    """The longest beginning of `text` that is exactly `n_tokens` tokens."""
    peer = Peer(path, 64, 1)
    pieces = [peer.piece(token) for token in peer.tokenize(text)]
    for end in range(n_tokens, n_tokens - 8, -1):
        beginning = b"".join(pieces[:end]).decode(errors="ignore")
        if len(peer.tokenize(beginning)) == n_tokens:
            return beginning
    raise SystemExit(f"no beginning of the text has {n_tokens} tokens")


def job_speed(
    path: str, threads: int, n_ctx: int, prompt: int, generate: int, repeats: int, flash: bool
) -> dict[str, list[float]]:
    """Tokens a second, each repetition: a prompt, then tokens one by one, each from nothing.

    Tokens and order as in `picoedge bench` and llama-bench.
    """
    import numpy as np

    peer = Peer(path, n_ctx, threads, flash)
    count = max(prompt, generate)
    tokens = np.random.default_rng(0).integers(0, peer.n_vocab, count).tolist()
    return {
        "prefill": _rates(peer, [tokens[:prompt]], repeats),
        "decode": _rates(peer, [[token] for token in tokens[:generate]], repeats),
    }


def _rates(peer: Peer, calls: list[list[int]], repeats: int) -> list[float]:
    """Tokens a second of each repetition, after an uncounted one."""
    rates = []
    for _ in range(repeats + 1):
        peer.forget()
        began = time.perf_counter()
        for tokens in calls:
            peer.evaluate(tokens)
        rates.append(sum(map(len, calls)) / (time.perf_counter() - began))
    return rates[1:]


def job_generate(
    path: str, threads: int, text: str, n: int, n_ctx: int, flash: bool
) -> dict[str, Any]:
    """A prompt and `n` greedy tokens: what a user's process does, for its memory."""
    peer = Peer(path, n_ctx, threads, flash)
    prompt = peer.tokenize(text)
    peer.evaluate(prompt)
    tokens: list[int] = []
    while len(tokens) < n:
        tokens.append(peer.argmax())
        peer.evaluate(tokens[-1:])
    return {"prompt_tokens": len(prompt), "tokens": tokens}


def job_perplexity(path: str, threads: int, text: str, n_tokens: int) -> dict[str, Any]:
    """Over the first tokens of the text as one context; also the ids."""
    agreement = importlib.import_module("bench.agreement")
    peer = Peer(path, n_tokens, threads)
    ids = peer.tokenize(text)[:n_tokens]
    return {"perplexity": agreement.perplexity(ids, peer.logits(ids)), "ids": ids}


def job_agreement(path: str, threads: int, reference: str) -> dict[str, Any]:
    """How often, and how closely, llama.cpp follows a reference (see `bench.agreement`)."""
    agreement = importlib.import_module("bench.agreement")
    peer = Peer(path, 1024, threads)
    result: dict[str, Any] = agreement.follow(reference, peer.logits)
    return result


JOBS: dict[str, Callable[..., Any]] = {
    "info": job_info,
    "tokenize": job_tokenize,
    "prefix": job_prefix,
    "speed": job_speed,
    "generate": job_generate,
    "perplexity": job_perplexity,
    "agreement": job_agreement,
}


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    print(json.dumps(JOBS[request.pop("job")](**request)))


if __name__ == "__main__":
    main()
