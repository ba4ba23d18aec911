"""The roof: what people type. It may import everything, and nothing below imports it."""
