"""The store of what teachers answered: sharded, append-only, filled by many processes."""
