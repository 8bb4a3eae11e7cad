"""PEFT's side of the LoRA rows. Jobs (JSON on the first line of stdin): `job_*`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bench import train_worker
from bench.lora.work import (
    BETAS,
    CLIP,
    EPSILON,
    RATE,
    STEPS,
    WARMUP,
    windows,
)  # fmt: skip
from picoedge.kernels.arrays import I32
from picoedge.train.step.schedule import Schedule

HEADS = ("whole", "chunked", "fused")  # all logits at once; by rows; F.linear_cross_entropy
HEAD_ROWS = 256  # tokens whose logits are computed at once where the head is `chunked`


def base_model(folder: str) -> Any:
    """The model of an exported folder, in f32, eager, with the quickest attention."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )


class PeftRun:
    """Steps of an adapter that is read from a folder: fused AdamW on its matrices alone."""

    def __init__(self, folder: str, adapter: str, head: str) -> None:
        from peft import PeftModel

        model: Any = PeftModel.from_pretrained(base_model(folder), adapter, is_trainable=True)
        model.train()
        self._decoder, self._head = model.get_base_model().model, head
        self._table = model.get_base_model().lm_head.weight
        self._trained = [each for each in model.parameters() if each.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, betas=BETAS, eps=EPSILON, weight_decay=0.0, fused=True
        )
        self._schedule, self._step = Schedule(RATE, WARMUP, STEPS), 0

    def step(self, cut: I32) -> float:
        """One step on windows [rows, length + 1]; the loss before it."""
        self._step += 1
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule.rate(self._step)
        ids = torch.from_numpy(cut).long()
        loss = self._loss(ids[:, :-1], ids[:, 1:].flatten())
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._trained, CLIP, foreach=True)
        self._optimizer.step()
        return float(loss.item())

    def _loss(self, tokens: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        x = self._decoder(input_ids=tokens, use_cache=False).last_hidden_state.flatten(0, 1)
        if self._head == "whole":
            return F.cross_entropy(F.linear(x, self._table), wanted)
        if self._head == "fused":
            options = torch.nn.LinearCrossEntropyOptions()
            return F.linear_cross_entropy(x, self._table, wanted, options=options)
        parts = zip(x.chunk(_chunks(x)), wanted.chunk(_chunks(x)), strict=True)
        sums = [F.cross_entropy(F.linear(a, self._table), b, reduction="sum") for a, b in parts]
        return torch.stack(sums).sum() / len(wanted)


def _chunks(x: torch.Tensor) -> int:
    return -(-len(x) // HEAD_ROWS)


def job_speed(folder: str, adapter: str, ids: str, threads: int, head: str) -> None:
    """Steps when asked: see `train_worker.serve`."""
    torch.set_num_threads(threads)
    tokens, run = np.load(ids), PeftRun(folder, adapter, head)
    train_worker.serve(lambda number: run.step(windows(tokens, number)))


def job_head(
    folder: str, adapter: str, ids: str, threads: int, rounds: int = 3
) -> dict[str, float]:
    """CPU seconds a step with each form of the head, the quickest of some, by turns."""
    torch.set_num_threads(threads)
    tokens = np.load(ids)
    made = {head: PeftRun(folder, adapter, head) for head in HEADS}
    taken: dict[str, list[float]] = {head: [] for head in HEADS}
    for number in range(rounds):
        for head, run in made.items():
            began = time.process_time()
            run.step(windows(tokens, number))
            taken[head].append(time.process_time() - began)
    return {head: min(seconds[1:]) for head, seconds in taken.items()}


def job_logits(folder: str, adapter: str, texts: Sequence[Sequence[int]], into: str) -> int:
    """Logits of each text with an adapter, as `N.npy` in a folder: f32 [tokens, vocabulary].

    Answers with how many there are.
    """
    from peft import PeftModel

    torch.set_num_threads(1)
    model: Any = PeftModel.from_pretrained(base_model(folder), adapter)
    model.eval()
    with torch.inference_mode():
        for number, text in enumerate(texts):
            logits = model(input_ids=torch.tensor([list(text)]), use_cache=False).logits[0]
            np.save(Path(into, f"{number}.npy"), logits.float().numpy())
    return len(texts)


def job_make(folder: str, adapters: Mapping[str, Mapping[str, Any]], spread: float) -> int:
    """Adapters as PEFT writes them, by folder: `LoraConfig`'s arguments; how many there are.

    B is drawn with a standard deviation of `spread`, not zero.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    for out, chosen in adapters.items():
        config = LoraConfig(task_type="CAUSAL_LM", **chosen)
        made: Any = get_peft_model(base_model(folder), config)
        for name, values in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(values, std=spread)
        made.save_pretrained(out)
    return len(adapters)


JOBS: dict[str, Callable[..., Any]] = {
    "speed": job_speed, "head": job_head, "logits": job_logits, "make": job_make,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(train_worker.main(JOBS))
