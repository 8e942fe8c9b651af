"""Train a classifier on votes between chatbot answers, and score very large sets of pairs with it, on Ray.

The public names are imported when they are first used, so `import wsdm_ray` alone loads no library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsdm_ray.api import arena, ensemble, evaluate, prepare, pseudolabel, quantize, score, train
    from wsdm_ray.errors import WsdmRayError
    from wsdm_ray.scoring.judge import Comparison, Judge

__version__ = "0.2.0"

__all__ = [
    "Comparison",
    "Judge",
    "WsdmRayError",
    "arena",
    "ensemble",
    "evaluate",
    "prepare",
    "pseudolabel",
    "quantize",
    "score",
    "train",
]

JOBS_MODULE = "wsdm_ray.api"
MODULES = {
    "Comparison": "wsdm_ray.scoring.judge",
    "Judge": "wsdm_ray.scoring.judge",
    "WsdmRayError": "wsdm_ray.errors",
}
"""Where the public names are, but those of `wsdm_ray.api`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(MODULES.get(name, JOBS_MODULE)), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
