"""Decides who may use the chat and the server, by address, key and cookie, and bounds what a request may send."""
