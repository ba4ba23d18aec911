"""Who answers problems, here or behind a server, and what was answered: traces."""
