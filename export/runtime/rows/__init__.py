"""Rows of a model's cache: what they hold, and who may continue from them.

cached_model.py   a model with its cache: runs new tokens of adjacent rows
prefix.py         what one row holds: which tokens, and how they were read
prefix_cache.py   prefixes on disk, for other processes
row_pool.py       rows that come and go one by one, as a server's do
"""
