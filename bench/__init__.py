"""Every figure this project claims, measured against its peers by turns in one run."""
