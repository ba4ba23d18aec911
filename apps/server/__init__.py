"""OpenAI's completion routes: from a request over the batch to a response."""
