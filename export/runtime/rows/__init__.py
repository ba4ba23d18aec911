"""What rows of a model's cache hold, and who may go on from it.

cached_model.py   a model with its cache: runs new tokens of rows that lie side by side
prefix.py         what one row holds: which tokens, and how they were read
prefix_cache.py   the same on disk, from one process to the next
row_pool.py       rows that come and go one by one, as a server's do
"""
