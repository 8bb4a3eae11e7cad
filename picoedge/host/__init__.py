"""What this machine is and can do: memory, cores, disks, speeds, heat. No model, no network."""
