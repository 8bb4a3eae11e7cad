"""`picoedge run`."""
