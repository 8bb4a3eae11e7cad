"""Models by name: found, fetched, packed, kept."""
