"""picoedge: small boards on one LAN, run as one machine for language models."""

__version__ = "0.1.0"
