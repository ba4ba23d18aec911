"""Turns conversations into what a page shows: messages, links that act, the running text. Pure, except the stream."""
