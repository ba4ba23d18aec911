"""How the server holds out under load."""
