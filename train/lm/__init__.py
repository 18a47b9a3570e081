"""Training of the language model: packing, schedule, loop."""
