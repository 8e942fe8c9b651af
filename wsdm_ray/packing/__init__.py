"""Which pairs share a micro-batch, and where their tokens lie in it: pure numpy, no model and no file."""
