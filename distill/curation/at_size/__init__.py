"""Curates more traces than memory holds: pieces of shards, graded in a pool of processes, and a run folder of them."""
