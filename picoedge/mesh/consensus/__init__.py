"""Agreement of boards on who takes part in a run, and from which step on: a pure state machine."""
