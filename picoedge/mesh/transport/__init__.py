"""Bytes between boards."""
