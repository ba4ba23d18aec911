"""Who may come in, by address, key and cookie, and how much a request may ask for; of the chat and of the server."""
