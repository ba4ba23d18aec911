"""What lies in an exported folder besides the graph, and what a broken-off export left there."""
