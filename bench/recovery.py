"""`python -m bench recovery`: what happens when boards die, stand still, are new, or lie."""

from __future__ import annotations

from collections.abc import Sequence

from bench import mesh_models, suite
from bench.recovery_hostile import hostile_frames
from bench.recovery_kills import kills
from bench.recovery_pull import pull_three
from bench.recovery_sessions import second_session
from bench.recovery_stalls import stalls
from bench.recovery_tight import tight_recovery
from bench.suite import Groups, Suite, Target

# Of five rounds: four kills each (at each budget), two stalls of each kind, 20,000 frames.
TARGETS = {
    "kill_detect_s": Target("<= 1.5", 1.0),
    "kill_same_text": Target("== 20", None),
    "tight_recovery": Target("== 60", None),
    "stall_told_apart": Target("== 30", None),
    "pull_three": Target(">= 2.5", 2.9),
    "hostile_frames": Target("== 0", None),
    "second_session_ratio": Target("<= 0.3", 0.1),
}

GROUPS: Groups = (
    (("kill_detect_s", "kill_same_text"), kills),
    (("tight_recovery",), tight_recovery),
    (("stall_told_apart",), stalls),
    (("pull_three",), pull_three),
    (("hostile_frames",), hostile_frames),
    (("second_session_ratio",), second_session),
)


def main(argv: Sequence[str]) -> int:
    """0: everything measured; 1: a measurement failed; 2: usage; 3: something is missing."""
    about = __doc__ or ""
    add, prepare = mesh_models.add_options, mesh_models.prepared
    return suite.run(Suite("recovery", about, TARGETS, GROUPS, add, prepare, rounds=5), argv)
