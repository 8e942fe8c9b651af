"""A pair's three texts to token ids: tags around them, truncation by segment, both orderings. No torch."""
