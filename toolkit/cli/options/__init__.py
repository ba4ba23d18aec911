"""What commands share: kinds of values, options of several commands and what they mean, and what a command hands
back."""
