"""From conversations to what a page shows: messages, links that act, the running text. Pure, but for its stream."""
