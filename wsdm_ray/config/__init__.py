"""Every option of every job: frozen dataclasses that check themselves. They import neither torch nor ray.

The resolved config of a run is written beside its output. A field's docstring is its help text.
"""

from wsdm_ray.config.checks import to_dict
from wsdm_ray.config.data import ArenaConfig, Columns, PrepareConfig, VoteFormat
from wsdm_ray.config.evaluate import EnsembleConfig, EvaluateConfig, QuickstartConfig
from wsdm_ray.config.model import HeadConfig, LoraConfig, QuantizeConfig, TextConfig
from wsdm_ray.config.score import PseudolabelConfig, ScoreConfig
from wsdm_ray.config.submission import SUBMISSION_OPTIONS, SubmissionConfig
from wsdm_ray.config.train import ObjectiveConfig, OptimizerConfig, TrainConfig

__all__ = [
    "SUBMISSION_OPTIONS",
    "ArenaConfig",
    "Columns",
    "EnsembleConfig",
    "EvaluateConfig",
    "HeadConfig",
    "LoraConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PrepareConfig",
    "PseudolabelConfig",
    "QuantizeConfig",
    "QuickstartConfig",
    "ScoreConfig",
    "SubmissionConfig",
    "TextConfig",
    "TrainConfig",
    "VoteFormat",
    "to_dict",
]
