"""Tools: load and check their documents, run them, replay them, find them; load the questions that need them."""
