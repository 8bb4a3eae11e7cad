"""A run of training from its start to its pack: loop, folder, log, progress, samples, curves."""
