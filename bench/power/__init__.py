"""Power cuts: what was not on the disk is lost, and all must be whole again."""
