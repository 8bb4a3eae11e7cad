"""PyTorch's side of the bench `train`. Jobs (JSON on the first line of stdin): `job_*`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench import train_worker
from bench.train_shapes import (
    BETAS,
    CLIP,
    EPSILON,
    WEIGHT_DECAY,
    Course,
    bound,
    config_named,
    random_weights,
    random_windows,
)  # fmt: skip
from bench.train_torch_model import HEADS, TorchModel, optimizer
from picoedge.config import ModelConfig
from picoedge.kernels.arrays import F32, I32
from picoedge.kernels.loader import load_training_kernels
from picoedge.model.vjps import MicroBatch
from picoedge.train.state.layout import Layout
from picoedge.train.step.schedule import Schedule


def model_of(config: ModelConfig, length: int, seed: int) -> TorchModel:
    """A preset with the weights that our side begins with."""
    layout = Layout.of(config)
    flat = layout.initial(seed)
    weights = {name: tensor.of(flat) for name, tensor in layout.tensors.items()}
    return TorchModel(config, weights, length, torch.float32)


class TorchRun:
    """Steps in eager mode; `compiled`: by `torch.compile`."""

    def __init__(
        self, model: TorchModel, schedule: Schedule, head: str, *, compiled: bool = False
    ) -> None:
        self._model, self._schedule, self._head, self._step = model, schedule, head, 0
        self._optimizer = optimizer(model, WEIGHT_DECAY, BETAS, EPSILON)
        self._loss: Any = torch.compile(model.losses) if compiled else model.losses

    def step(self, windows: I32) -> float:
        """One step on windows [rows, length + 1]; the loss before it."""
        self._step += 1
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule.rate(self._step)
        loss = self._loss(*_cut(windows), self._head)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP, foreach=True)
        self._optimizer.step()
        return float(loss.item())

    def loss(self, windows: I32) -> float:
        """The mean loss, without a step."""
        with torch.inference_mode():
            return float(self._model.losses(*_cut(windows), "chunked"))


def _cut(windows: I32) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.from_numpy(windows).long()
    return ids[:, :-1], ids[:, 1:]


def job_speed(
    model: str, threads: int, rows: int, length: int, head: str, compiled: bool = False
) -> None:
    """Steps when asked: see `train_worker.serve`."""
    torch.set_num_threads(threads)
    config = config_named(model)
    run = TorchRun(model_of(config, length, 0), Schedule(1e-3, 10, 1000), head, compiled=compiled)
    train_worker.serve(lambda step: run.step(random_windows(config, 0, step, rows, length)))


def job_head(model: str, threads: int, rows: int, length: int, rounds: int = 5) -> dict[str, float]:
    """Seconds a step with each form of the head, the quickest of some, by turns."""
    torch.set_num_threads(threads)
    config = config_named(model)
    made = {
        head: TorchRun(model_of(config, length, 0), Schedule(1e-3, 10, 1000), head)
        for head in HEADS
    }
    taken: dict[str, list[float]] = {head: [] for head in HEADS}
    for step in range(rounds):
        windows = random_windows(config, 0, step, rows, length)
        for head, run in made.items():
            began = time.perf_counter()
            run.step(windows)
            taken[head].append(time.perf_counter() - began)
    return {head: min(seconds[1:]) for head, seconds in taken.items()}


def job_course(ids: str, threads: int, course: dict[str, Any]) -> float:
    """The held-out loss at the end of a course over the tokens in the file `ids`."""
    torch.set_num_threads(threads)
    plan, tokens = Course(**course), np.load(ids)
    model = model_of(config_named(plan.model), plan.length, plan.seed)
    run = TorchRun(model, plan.schedule, "chunked")
    return train_worker.go_through(plan, tokens, run.step, run.loss)


def job_gradient_error(models: list[str], rows: int, length: int) -> dict[str, dict[str, float]]:
    """By model, and by tensor of it: see `gradient_errors`."""
    torch.set_num_threads(1)
    return {model: gradient_errors(model, rows, length) for model in models}


def gradient_errors(model: str, rows: int, length: int) -> dict[str, float]:
    """‖g - g64‖ ÷ ‖g64‖ by tensor, ours against autograd in f64."""
    config = config_named(model)
    weights = random_weights(config) if model in _SMALL_MODELS else _initial(config)
    windows = random_windows(config, 1, 0, rows, length)
    gradients, parameters = bound(config, weights)
    work = MicroBatch(config, load_training_kernels(), parameters, rows, length)
    tokens, targets = (np.ascontiguousarray(windows[:, cut]) for cut in _CUTS)
    work.losses_and_gradients(tokens.ravel(), targets.ravel(), 1 / targets.size)
    reference = TorchModel(config, weights, length, torch.float64)
    torch.autograd.backward(reference.losses(*_cut(windows), "whole"))
    return {
        name: _distance(gradient, reference.named[name].grad)
        for name, gradient in gradients.items()
    }


_CUTS = (slice(None, -1), slice(1, None))
_SMALL_MODELS = ("llama", "qwen2", "qwen3", "gemma3")


def _initial(config: ModelConfig) -> dict[str, F32]:
    layout = Layout.of(config)
    flat = layout.initial(0)
    return {name: tensor.of(flat) for name, tensor in layout.tensors.items()}


def _distance(gradient: F32, right: Any) -> float:
    wide = right.numpy()
    return float(np.linalg.norm(gradient - wide) / np.linalg.norm(wide))


JOBS: dict[str, Callable[..., Any]] = {
    "speed": job_speed,
    "head": job_head,
    "course": job_course,
    "gradient_error": job_gradient_error,
}

if __name__ == "__main__":
    sys.exit(train_worker.main(JOBS))
