"""Other programs that load an exported folder, each in an environment of its own."""
