"""The answer to one question while a model is fine-tuned, so that one sees what it says by now."""

from __future__ import annotations

from collections.abc import Callable

from picoedge.config import ModelConfig
from picoedge.kernels.arrays import F32
from picoedge.kernels.training import TrainingKernels
from picoedge.store.pack.reader import Pack
from picoedge.text.template.chosen import end_answers
from picoedge.text.template.template import ChatTemplate, encode_chat
from picoedge.text.tokenizer.load import load_tokenizer
from picoedge.train.lora.layout import AdapterLayout
from picoedge.train.run.memory import micro_batch_bytes
from picoedge.train.run.samples import TextSampler

_ANSWER, _STEP = 32, 16  # tokens of an answer, at most; the length of a sequence is a multiple
_USUAL = 128  # tokens of question and answer
_TOKENIZER = 32 << 20


def answer_bytes(config: ModelConfig) -> int:
    """About as much memory as answers take: one sequence, and the tokenizer."""
    return micro_batch_bytes(config, 1, _USUAL, recompute=True) + _TOKENIZER


def answers(
    question: str, pack: Pack, layout: AdapterLayout, kernels: TrainingKernels, weights: F32
) -> Callable[[int], str]:
    """Called with the step, it answers greedily, with `weights` f32 [layout.length] as they are.

    A model without a chat template goes on with the question. Raises TextError.
    """
    tokenizer, template = load_tokenizer(pack.path), ChatTemplate.load(pack.path)
    if template is None:
        prompt = tokenizer.encode(question, parse_special=False)
    else:
        if template.chosen:
            end_answers(template, tokenizer)
        prompt = encode_chat(template, tokenizer, [{"role": "user", "content": question}])
    length = -(-(len(prompt) + _ANSWER) // _STEP) * _STEP
    sampler = TextSampler(
        pack.config, kernels, layout.bind(weights, weights), prompt, tokenizer.eos_ids,
        length=length, temperature=0.0,
    )  # fmt: skip
    return lambda step: f"{question} {tokenizer.decode(sampler.sample(step)[len(prompt) :])}"
