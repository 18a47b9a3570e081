"""Training of unit encoders."""
