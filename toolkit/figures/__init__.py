"""Shows measured figures: intervals, the ledger, charts, the report, blocks of a README.

It imports only the ground.
"""
