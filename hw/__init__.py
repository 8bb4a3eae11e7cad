"""Boards, emulated ones too: nothing of picoedge itself imports this."""
