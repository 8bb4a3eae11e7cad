"""All targets, by name."""

from __future__ import annotations

from fuzz.targets_answers import ANSWERS
from fuzz.targets_files import FILES
from fuzz.targets_frames import FRAMES
from fuzz.targets_hub import HUB
from fuzz.targets_identity import IDENTITY
from fuzz.targets_kept import KEPT
from fuzz.targets_mesh import MESSAGES_OF_BOARDS
from fuzz.targets_text import TEXT
from fuzz.targets_tokenizers import TOKENIZERS

_ALL = (*FILES, *TOKENIZERS, *TEXT, *HUB, *MESSAGES_OF_BOARDS, *ANSWERS, *FRAMES, *IDENTITY, *KEPT)
TARGETS = {target.name: target for target in _ALL}
