"""Parts common to every kind of job over several boards."""
