"""The daemon's network half."""
