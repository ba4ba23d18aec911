"""What a text may mean as an answer: numbers, words, choices, dates and their parts."""
