"""Greedy texts of a model over boards, asked for as a session does."""

from __future__ import annotations

from picoedge.cluster.resilient_model import ClusterModel

PROMPT = [1, 2, 3, 4, 5]


class Text:
    """PROMPT and the tokens after it."""

    def __init__(self, model: ClusterModel) -> None:
        self.model, self.tokens = model, [*PROMPT]

    def ask(self) -> int:
        """The next token, as the first of an answer."""
        logits = self.model.forward(self.tokens[-2:], len(self.tokens) - 2)
        self.tokens.append(int(logits.argmax()))
        return self.tokens[-1]


def undisturbed(model: ClusterModel, count: int) -> list[int]:
    model.forward(PROMPT, 0)
    text = Text(model)
    for _ in range(count):
        text.ask()
    return text.tokens


def begun(model: ClusterModel, count: int) -> tuple[Text, list[int]]:
    """An answer of one token so far, and the first `count` of one that nothing disturbs."""
    expected = undisturbed(model, count)
    model.forward(PROMPT, 0)
    text = Text(model)
    text.ask()
    return text, expected
