"""What the commands share: how values are parsed, options that several commands take, and the result of a command."""
