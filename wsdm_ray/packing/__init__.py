"""Which pairs share a forward pass, and where their tokens lie in it: pure numpy, no model and no file."""
