"""Talking to the model: the page and the command line."""
