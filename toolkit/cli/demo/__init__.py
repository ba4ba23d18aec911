"""The whole line once, sized for this machine: a rehearsal that measures it, the recipe that follows, the run."""
