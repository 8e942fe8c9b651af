"""Options of the jobs that write a submission: `score` and `ensemble`."""

from dataclasses import dataclass
from typing import Literal

from wsdm_ray.config.checks import check

__all__ = ["SUBMISSION_OPTIONS", "SubmissionConfig", "SubmissionFormat"]

SubmissionFormat = Literal["wsdm", "lmsys"]

SUBMISSION_OPTIONS = ("submission", "submission_format", "tie_rate", "tie_votes", "tie_predictions")
"""Their names: none decides the predictions."""


@dataclass(frozen=True, kw_only=True)
class SubmissionConfig:
    """A CSV file with one row for each prediction, in their order."""

    submission: str | None = None
    """CSV file to write as well, as Kaggle takes it. Example: --submission submission.csv"""
    submission_format: SubmissionFormat = "wsdm"
    """wsdm: the columns id and winner. lmsys: id, winner_model_a, winner_model_b and winner_tie."""
    tie_rate: float | None = None
    """lmsys: the probability of a tie, the same for every row; by default the share of ties in the
    competition's train.csv, 0.309.
    Example: --tie-rate 0.25 --submission submission.csv --submission-format lmsys"""
    tie_votes: tuple[str, ...] = ()
    """lmsys: votes with ties, on which a model of ties is fitted (`prepare --ties soft` keeps them).
    Example: --tie-votes data/valid --submission submission.csv --submission-format lmsys"""
    tie_predictions: str | None = None
    """lmsys: predictions of the same model for the rows of --tie-votes; by default those of this output.
    Example: --tie-predictions valid-predictions --tie-votes data/valid --submission submission.csv
    --submission-format lmsys"""

    def check_submission(self) -> None:
        """Raise `ConfigError` where the options of the submission do not fit each other."""
        lmsys = self.submission is not None and self.submission_format == "lmsys"
        for name in SUBMISSION_OPTIONS[1:]:
            default = getattr(SubmissionConfig, name)
            value = getattr(self, name)
            if name == "submission_format":
                check(value == default or self.submission is not None, name, value, "beside --submission")
            else:
                check(value == default or lmsys, name, value, "beside --submission-format lmsys")
        check(self.tie_rate is None or 0 < self.tie_rate < 1, "tie_rate", self.tie_rate, "in (0, 1)")
        check(
            self.tie_rate is None or not self.tie_votes,
            "tie_rate",
            self.tie_rate,
            "given without --tie-votes: the one or the other",
        )
        check(
            self.tie_predictions is None or bool(self.tie_votes),
            "tie_predictions",
            self.tie_predictions,
            "beside --tie-votes",
        )
