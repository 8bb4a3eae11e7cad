"""A life of boards on a desk: faults, questions, and the verdict on both."""
