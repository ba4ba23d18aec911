"""The ground that everything stands on: errors, records, run folders, the terminal. It imports no other room."""
