"""Makes texts in two vocabularies comparable: bytes of tokens, aligned spans, classes of tokens."""
