"""What `votes_study.py` compares with: logistic regression on TF-IDF and lengths, and the longer answer."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wsdm_ray.config import EvaluateConfig
from wsdm_ray.evaluation.evaluate import evaluate
from wsdm_ray.storage import write_parquet

__all__ = ["REGRESSION", "baselines", "evaluated"]

REGRESSION = "logistic_regression"
KEPT = ("rows", "accuracy", "accuracy_ci95", "log_loss", "log_loss_ci95", "auc", "brier", "ece",
        "position_bias", "flip_rate", "calibration", "baselines")  # fmt: skip


def evaluated(predictions: str, work: Path, output: str, votes: str = "valid") -> dict[str, Any]:
    """Metrics on the votes in `outer/VOTES`, a glob."""
    inputs = (f"{work}/outer/{votes}/*.parquet",)
    metrics = evaluate(EvaluateConfig(predictions=(predictions,), votes=inputs, output=output))
    return {name: metrics[name] for name in KEPT}


def baselines(work: Path) -> dict[str, Any]:
    """Logistic regression on TF-IDF and lengths, and the longer answer, on the same test votes.

    The former's probabilities are written as predictions.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    train, test = (pq.read_table(f"{work}/outer/{name}") for name in ("train", "valid"))
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=3, max_features=50_000)
    vectorizer.fit(train["response_a"].to_pylist() + train["response_b"].to_pylist())

    def features(table: Any) -> Any:
        import scipy.sparse

        a, b = (table[name].to_pylist() for name in ("response_a", "response_b"))
        lengths = np.array([[np.log1p(len(x)) - np.log1p(len(y))] for x, y in zip(a, b, strict=True)])
        return scipy.sparse.hstack([vectorizer.transform(a) - vectorizer.transform(b), lengths]).tocsr()

    def votes(table: Any) -> np.ndarray:
        return np.array([winner == "model_a" for winner in table["winner"].to_pylist()])

    X, y = features(train), votes(train)
    groups = np.unique(train["prompt"].to_pylist(), return_inverse=True)[1]

    def fitted(rows: np.ndarray, strength: float) -> LogisticRegression:
        # Differences without an intercept: swapping the two answers gives 1 - p.
        return LogisticRegression(C=strength, fit_intercept=False, max_iter=500).fit(X[rows], y[rows])

    def loss(p: np.ndarray, truth: np.ndarray) -> float:
        p = np.clip(p, 1e-7, 1 - 1e-7)
        return float(-np.mean(truth * np.log(p) + (1 - truth) * np.log(1 - p)))

    choices = {}
    for strength in (0.03, 0.1, 0.3, 1.0, 3.0):
        found = np.zeros(len(y))
        for fit, judge in GroupKFold(4).split(X, y, groups):
            found[judge] = fitted(fit, strength).predict_proba(X[judge])[:, 1]
        choices[strength] = loss(found, y)
    best = min(choices, key=lambda strength: choices[strength])
    p = fitted(np.arange(len(y)), best).predict_proba(features(test))[:, 1]
    write_parquet(
        f"{work}/{REGRESSION}/predictions/part-000000.parquet", pa.table({"id": test["id"], "prob_a": p})
    )
    metrics = evaluated(f"{work}/{REGRESSION}/predictions", work, f"{work}/{REGRESSION}/report")
    names = ("rows", "accuracy", "accuracy_ci95", "log_loss", "log_loss_ci95", "calibration")
    return {
        REGRESSION: {name: metrics[name] for name in names} | {"C": best, "log_loss_by_C": choices},
        "longer_answer": {"rows": metrics["rows"]} | metrics["baselines"]["longer_answer"],
    }
