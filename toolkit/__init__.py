"""The ground that everything stands on: errors, records, run folders and the terminal. It imports no other room."""
