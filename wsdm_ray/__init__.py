"""Train a classifier on votes between chatbot answers, and score very large sets of pairs with it, on Ray."""

__version__ = "0.2.0"
