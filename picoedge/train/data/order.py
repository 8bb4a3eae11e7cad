"""The order of samples: a keyed permutation of their numbers, stored nowhere. Pure.

A Feistel network over the smallest even number of bits that holds all numbers, walked again while
its result is none of them (Black and Rogaway 2002). Its round function is SplitMix64's mixer
(Steele et al. 2014).
"""

from __future__ import annotations

_ROUNDS, _MASK = 6, (1 << 64) - 1
# Of SplitMix64: the step of its state, and the factors of its mixer.
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(value: int) -> int:
    """SplitMix64's mixer: 64 bits that depend on all bits of `value`."""
    value = (value + GOLDEN) & _MASK
    value = (value ^ (value >> 30)) * FIRST & _MASK
    value = (value ^ (value >> 27)) * SECOND & _MASK
    return value ^ (value >> 31)


class SampleOrder:
    """A permutation of `count` samples for each epoch, by `seed`."""

    def __init__(self, count: int, seed: int) -> None:
        assert count > 0
        self.count, self._seed = count, seed
        self._half = max(1, ((count - 1).bit_length() + 1) // 2)

    def sample(self, position: int) -> int:
        """The number of the sample at a position, which goes on over all epochs."""
        epoch, at = divmod(position, self.count)
        while True:
            at = self._permuted(at, epoch)
            if at < self.count:
                return at

    def _permuted(self, at: int, epoch: int) -> int:
        mask, key = (1 << self._half) - 1, mix(mix(self._seed & _MASK) ^ epoch)
        left, right = at >> self._half, at & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (mix(key ^ (number << 56) ^ right) & mask)
        return left << self._half | right
