"""What befalls boards: drawn by a seed, done to real processes, links and cards."""
