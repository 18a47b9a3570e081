"""Training of the speech recogniser."""
