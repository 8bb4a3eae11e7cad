"""Sources of a training loop: the batch of each step, and batches that are held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from picoedge.train.step.batch import Batch


class TokenSource(Protocol):
    """Batches of one run.

    A batch is a function of the step's number and of the settings the source was made with alone: a
    resumed run needs no state of it.
    """

    @property
    def held_out(self) -> Sequence[Batch]:
        """Batches that no step trains on; empty where no part was held out."""
        ...

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens with a target that steps go through until each was trained on once."""
        ...

    def batch(self, step: int) -> Batch:
        """The batch of a step, which counts from 1. It has at least one target that counts.

        Raises ModelError, StorageError where the data cannot be read any more.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Facts for the run's record, as in JSON: hashes of data and tokenizer, and sizes.

        Equal facts and equal settings give equal batches.
        """
        ...
