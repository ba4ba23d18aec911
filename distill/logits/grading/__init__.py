"""What a teacher says of each token that a student wrote, and how far the student is from it."""
