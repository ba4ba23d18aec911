"""The page: its layout, its handlers and what they update; two models side by side."""
