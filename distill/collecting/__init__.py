"""Jobs: problems to ask a teacher, the requests that they come to, and the log of their answers and failures."""
