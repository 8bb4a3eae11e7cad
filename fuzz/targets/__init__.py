"""All targets, by name."""

from __future__ import annotations

from fuzz.targets.adapters import ADAPTERS
from fuzz.targets.answers import ANSWERS
from fuzz.targets.files import FILES
from fuzz.targets.frames import FRAMES
from fuzz.targets.hub import HUB
from fuzz.targets.identity import IDENTITY
from fuzz.targets.kept import KEPT
from fuzz.targets.local import LOCAL
from fuzz.targets.mesh import MESSAGES_OF_BOARDS
from fuzz.targets.text import TEXT
from fuzz.targets.tokenizers import TOKENIZERS
from fuzz.targets.training import TRAINING

_ALL = (
    *FILES,
    *TOKENIZERS,
    *TEXT,
    *HUB,
    *MESSAGES_OF_BOARDS,
    *ANSWERS,
    *FRAMES,
    *IDENTITY,
    *KEPT,
    *LOCAL,
    *TRAINING,
    *ADAPTERS,
)
TARGETS = {target.name: target for target in _ALL}
