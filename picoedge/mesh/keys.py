"""A board's pair of keys: who it is, to every other board."""

from __future__ import annotations

from dataclasses import dataclass, field

import zmq


@dataclass(frozen=True)
class KeyPair:
    """Curve25519 keys in Z85, 40 characters each. The secret is in no text made of this."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> KeyPair:
        """A pair nobody has had before."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())
