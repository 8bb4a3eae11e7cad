"""A life of boards on a desk: what happens to them, what is asked, and how it is judged."""
