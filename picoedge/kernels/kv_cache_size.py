"""What a cache of keys and values takes, before there is one."""

from __future__ import annotations

from picoedge.kernels.blocks import BLOCK_COLS, TILE_ROWS


def padded_positions(n_ctx: int) -> int:
    """Positions there is room for: whole tiles of 16 keys."""
    return -(-n_ctx // TILE_ROWS) * TILE_ROWS


def scale_blocks(head_dim: int) -> int:
    """Blocks of 32 dimensions, each with a scale in an 8-bit cache; the last may be smaller."""
    return -(-head_dim // BLOCK_COLS)


def kv_cache_bytes(n_ctx: int, kv_heads: int, head_dim: int, bits: int) -> int:
    """Bytes of the full cache of one layer, in either twin; `bits` is 32, 16 or 8."""
    of_row = head_dim * bits // 8
    if bits == 8:
        of_row += 2 * scale_blocks(head_dim)
    return 2 * padded_positions(n_ctx) * kv_heads * of_row
