"""The mesh: identity, transport, membership, sums and shard transfer between boards."""
