"""Checks a folder before it ships: parity with the float model, the gate, and the record for the user's machine."""
