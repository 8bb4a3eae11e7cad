"""Agreement on the boards of a run, and on the step from which they count: a pure state machine."""
