"""What a person asks, and the conversation as it must be remembered. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

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
TURNS = 10  # a conversation is cleared then: its context is short


@dataclass
class Conversation:
    """The messages as the chat has them."""

    messages: list[dict[str, str]] = field(default_factory=list)
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

    def clear(self) -> None:
        """Begin anew."""
        self.messages.clear()
