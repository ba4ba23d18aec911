"""What a completion request may hold: its body, its fields, its JSON schema."""
