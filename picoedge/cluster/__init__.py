"""One model over several boards."""
