"""Teachers on this machine: what they take, in which precision they load, how they are sampled and batched."""
