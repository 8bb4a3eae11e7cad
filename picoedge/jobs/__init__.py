"""What every kind of job over several boards needs."""
