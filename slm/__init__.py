"""Speech in, speech units out: everything that runs when somebody talks to the model."""
