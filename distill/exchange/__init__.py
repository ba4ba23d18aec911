"""Exchanges traces with other programs: writes runs as data sets, and reads published data sets of traces as runs."""
