"""Serves OpenAI's completion routes: a request joins the batch and becomes a response."""
