"""Subcommands of `toolkit traces`: what is done with traces that a teacher has answered."""
