"""The tokens of a step, and what each has to be followed by. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from picoedge.kernels.arrays import F32, I32

NO_TARGET = -1


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """A micro-batch of text on which the model is to stay as it was: its mean divergence is a loss.

    tokens and targets i32 [sequences, length]; reference f32 [sequences * length, hidden], what the
    head read of these tokens before (`MicroBatch.hidden`); weight: of this loss beside the batch's.
    """

    tokens: I32
    targets: I32
    reference: F32
    weight: float


@dataclass(frozen=True, eq=False)
class Batch:
    """Micro-batches: tokens and targets i32 [micro-batches, sequences, length].

    A target is the token that follows. One below 0 counts nothing: it lies outside the answers, or
    behind the end of a sequence. Where short texts share a sequence, `documents`, of the same
    shape, has another number for each of them: no token attends to another text. `rehearsal` is one
    micro-batch more.
    """

    tokens: I32
    targets: I32
    documents: I32 | None = None
    rehearsal: Rehearsal | None = None

    @classmethod
    def of_windows(cls, windows: I32) -> Batch:
        """Each token has a target: windows i32 [micro-batches, sequences, length + 1]."""
        tokens, targets = windows[..., :-1], windows[..., 1:]
        return cls(np.ascontiguousarray(tokens), np.ascontiguousarray(targets))

    def micro_batch(self, number: int) -> tuple[I32, I32, I32 | None]:
        """Tokens, targets and documents of a micro-batch, [sequences * length] each."""
        documents = None if self.documents is None else self.documents[number].ravel()
        return self.tokens[number].ravel(), self.targets[number].ravel(), documents

    @property
    def targets_counted(self) -> int:
        """Targets that have a loss."""
        return int(np.count_nonzero(self.targets >= 0))
