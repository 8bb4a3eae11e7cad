"""This machine: memory, cores, disks, speeds, heat. No model, no network."""
