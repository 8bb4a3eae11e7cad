"""What a person asks, and the conversation as it must be remembered. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Message = dict[str, str]

QUESTIONS = (
    "What is the capital of France?",
    "Name three fruits that are red.",
    "Why is the sky blue?",
    "Tell me about the sea.",
    "And what would a child say to that?",
    "How do I boil an egg?",
    "Say it in other words.",
    "What is a river?",
    "Who was Ada Lovelace?",
    "Go on.",
    "Describe a morning in the mountains.",
)
SINGLE = (
    "What is the largest planet?",
    "Who wrote Hamlet?",
    "What do bees eat?",
    "Name a river in Africa.",
)
TURNS = 10  # a conversation is cleared then: its context is short


@dataclass
class Conversation:
    """The messages as the chat has them."""

    messages: list[Message] = field(default_factory=list)
    asked: int = 0

    @property
    def is_long(self) -> bool:
        """Whether a person would begin a new one."""
        return len(self.messages) >= 2 * TURNS

    def next_question(self) -> str:
        """Add the next question to it."""
        question = QUESTIONS[self.asked % len(QUESTIONS)]
        self.asked += 1
        self.messages.append({"role": "user", "content": question})
        return question

    def answered(self, text: str) -> None:
        """Add its answer; of a question without one nothing is kept."""
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()

    def differs(self, kept: Sequence[Message]) -> str:
        """What of whole turns is not in what was kept; "" where nothing is lost."""
        turns = self.messages[: len(self.messages) // 2 * 2]
        for index, message in enumerate(turns):
            there = dict(kept[index]) if index < len(kept) else None
            if there != message:
                return f"message {index} is {there}, not {message}"
        return ""

    def clear(self) -> None:
        """Begin anew."""
        self.messages.clear()
