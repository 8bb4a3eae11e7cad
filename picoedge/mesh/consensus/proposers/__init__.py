"""Who proposes configurations: the lowest rank, whoever notices a failure, the owner."""
