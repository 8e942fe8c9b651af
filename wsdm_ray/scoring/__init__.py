"""Probabilities for pairs: engine (torch, no ray), replica, plan, pipeline (Ray Data)."""
