"""Measured figures and how they are shown: intervals, the ledger, charts, the report, blocks of a README.

Imports the ground alone.
"""
