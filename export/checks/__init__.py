"""What must hold before a folder ships: parity, the gate, and the record for the user's machine."""
