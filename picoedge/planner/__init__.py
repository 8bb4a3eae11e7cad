"""Plans, from figures alone: no clock, file or socket."""
