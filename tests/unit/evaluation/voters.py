"""Simulated votes, and sets of predictions that know something of them."""

from typing import Any

import numpy as np

GRID = 2.0**-24


def voters(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True probabilities, votes, and three sets: one good and too sure, one noisy, one that knows nothing."""
    random = np.random.default_rng(seed)
    logit = random.normal(0, 1.5, rows)
    sets = [
        2 * logit + random.normal(0, 0.5, rows),
        logit + random.normal(0, 1.5, rows),
        random.normal(0, 1, rows),
    ]
    prob = 1 / (1 + np.exp(-np.stack(sets, axis=1)))
    return prob, (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(float), logit


def enough(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Four times the rows, on four times the prompts: as many as a fit needs of sixty."""
    copies = {name: column * 4 for name, column in rows.items()}
    for name in ("id", "prompt"):
        if name in rows:
            copies[name] = [
                f"{copy} {value}" if isinstance(value, str) else copy * len(rows[name]) + value
                for copy in range(4)
                for value in rows[name]
            ]
    return copies
