"""What is compiled is compiled before the first step of a process.

Within steps every worker would wait for one that meets a kind of row for the first time.
"""

from collections.abc import Callable

import numpy as np

from wsdm_ray.modeling.classifier import preference_log_odds
from wsdm_ray.modeling.memory_errors import is_oom
from wsdm_ray.packing.layouts import Layout
from wsdm_ray.training.model import TrainingModel

__all__ = ["warm_up"]


def warm_up(model: TrainingModel, tokens_N: np.ndarray, lay_out: Callable[[np.ndarray, int], Layout]) -> None:
    """Run the shortest of some pairs forward and backward in a row of each kind, and forget the gradients.

    It changes nothing: every micro-batch seeds its own dropout. Where memory runs out, the step will say so.

    Args:
        tokens_N: of each pair, int64.
        lay_out: of places of pairs, int64, and tokens of the row.
    """
    shortest, least = np.array([tokens_N.argmin()]), model.row_tokens(int(tokens_N.min()))
    model.network.train()
    try:
        rows = model.compiled_rows()
        with model.passes(len(rows), backward=True):
            for tokens in rows:
                logits = model.logits(lay_out(shortest, max(tokens, least)))
                preference_log_odds(logits).sum().backward()
    except RuntimeError as error:
        if not is_oom(error):
            raise
    finally:
        model.network.zero_grad(set_to_none=True)
