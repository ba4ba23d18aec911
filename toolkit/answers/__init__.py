"""What a text answers: the final answer in it, and the number or word that this says."""
