"""A toolkit that brings reasoning models to the edge: records, runs, chat format, generation, model parts."""
