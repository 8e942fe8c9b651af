"""The arena: reproducible rows, stated probabilities, and a signal that a small model can find."""

import collections
import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from wsdm_ray.config import ArenaConfig
from wsdm_ray.data.arena import ARENA_SCHEMA, BLOCK_ROWS, MODELS, arena_batches, make_arena, utility
from wsdm_ray.data.arena_phrases import LANGUAGES
from wsdm_ray.data.cleaning import clean_texts
from wsdm_ray.errors import RunMismatchError
from wsdm_ray.text.groups import prompt_group_key


@pytest.fixture(scope="module")
def votes() -> pa.Table:
    return pa.concat_tables(arena_batches(7_500, seed=0, lengths="short"))


def test_rows_are_canonical(votes):
    assert votes.schema == ARENA_SCHEMA
    assert not any(column.null_count for column in votes.columns)
    assert len(set(votes["id"].to_pylist())) == len(votes)
    assert set(votes["winner"].to_pylist()) == {"model_a", "model_b"}
    languages = collections.Counter(votes["language"].to_pylist())
    assert {"English", "Chinese", "Japanese", "Russian", "Arabic", "Hindi"} < languages.keys()
    assert len(languages) == 8
    assert min(languages.values()) > 0.05 * len(votes)
    assert all(
        a != b for a, b in zip(votes["model_a"].to_pylist(), votes["model_b"].to_pylist(), strict=True)
    )
    assert set(votes["model_a"].to_pylist()) == {model[0] for model in MODELS}


def test_texts_need_no_cleaning(votes):
    cleaned, changed = clean_texts(votes)
    assert changed == 0
    assert cleaned.equals(votes)


def test_some_prompts_recur_and_most_do_not(votes):
    groups = collections.Counter(map(prompt_group_key, votes["prompt"].to_pylist()))
    assert len(groups) > 0.75 * len(votes)
    recurring = sum(rows for rows in groups.values() if rows > 1)
    assert recurring > 0.05 * len(votes)


def test_a_row_depends_on_seed_and_index_alone():
    longer = pa.concat_tables(arena_batches(BLOCK_ROWS + 300, seed=5, lengths="short"))
    shorter = pa.concat_tables(arena_batches(BLOCK_ROWS + 7, seed=5, lengths="short"))
    assert shorter.equals(longer.slice(0, len(shorter)))
    assert len(longer) == BLOCK_ROWS + 300
    other = pa.concat_tables(arena_batches(7, seed=6, lengths="short"))
    assert other["prompt"].to_pylist() != longer["prompt"].to_pylist()[:7]


@pytest.mark.parametrize(
    ("lengths", "digest"),
    [("real", "1c948e14e719da15"), ("short", "f031a5d0716ebdc1")],
)
def test_rows_stay_what_they_were(lengths, digest):
    """Published figures are of these rows: a changed draw, order or phrase shows."""
    (votes,) = arena_batches(50, seed=0, lengths=lengths)
    texts = votes.drop_columns("best_prob_a").to_pylist()
    assert hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16] == digest


def test_votes_follow_their_probabilities(votes):
    p = votes["best_prob_a"].to_numpy()
    won = np.array(votes["winner"].to_pylist()) == "model_a"
    assert 0.02 <= p.min() < p.max() <= 0.98
    for low in np.arange(0, 1, 0.1):
        here = (p >= low) & (p < low + 0.1)
        error = np.sqrt(p[here].mean() * (1 - p[here].mean()) / here.sum())
        assert abs(won[here].mean() - p[here].mean()) < 4 * error


def test_utility_prefers_what_it_says():
    plain = {"care": 0, "polite": 0, "correct": 0, "refusal": 0, "wrong_language": 0, "sentences": 3}
    base = utility(**plain)
    for better in ({"care": 1}, {"polite": 1}, {"correct": 1}, {"sentences": 4}):
        assert utility(**{**plain, **better}) > base
    for worse in ({"care": -1}, {"refusal": 1}, {"wrong_language": 1}, {"sentences": 2}):
        assert utility(**{**plain, **worse}) < base


@pytest.mark.parametrize(("lengths", "low", "high"), [("short", 70, 140), ("real", 750, 1300)])
def test_lengths(lengths, low, high):
    votes = pa.concat_tables(arena_batches(2_000, seed=0, lengths=lengths))
    per_character = {language.name: language.tokens_per_character for language in LANGUAGES}
    tokens = np.array(
        [
            sum(len(row[name]) for name in ("prompt", "response_a", "response_b"))
            * per_character[row["language"]]
            for row in votes.to_pylist()
        ]
    )
    assert low < np.median(tokens) < high
    assert np.quantile(tokens, 0.99) > 2.5 * np.median(tokens), "a long tail"


def test_words_and_lengths_alone_come_close_to_the_best(votes):
    """Bag-of-words differences and the log-length ratio, on prompts that were not in training."""
    rows = votes.to_pylist()
    train = rows[:6_000]
    seen = {prompt_group_key(row["prompt"]) for row in train}
    held_out = [row for row in rows[6_000:] if prompt_group_key(row["prompt"]) not in seen]
    words = CountVectorizer(token_pattern=r"\w+|[^\w\s]", max_features=4_000)
    words.fit(row[name] for row in train for name in ("response_a", "response_b"))

    def features(rows):
        a, b = (words.transform([row[name] for row in rows]).sqrt() for name in ("response_a", "response_b"))
        ratio = [[np.log(len(row["response_a"]) / len(row["response_b"]))] for row in rows]
        return scipy.sparse.hstack([a - b, np.array(ratio)]).tocsr()

    def won(rows):
        return np.array([row["winner"] == "model_a" for row in rows])

    model = LogisticRegression(C=0.1, max_iter=300).fit(features(train), won(train))
    says_a = model.predict_proba(features(held_out))[:, 1] > 0.5
    p = np.array([row["best_prob_a"] for row in held_out])
    best = np.maximum(p, 1 - p).mean()
    expected = np.where(says_a, p, 1 - p).mean()  # its accuracy without the luck of the draw
    assert 0.80 <= best <= 0.85
    assert (expected - 0.5) / (best - 0.5) > 0.88


def test_make_arena_writes_the_same_bytes_and_the_best_accuracy(tmp_path):
    config = ArenaConfig(output=str(tmp_path / "one"), rows=2_300, seed=3, lengths="short")
    run = make_arena(config)
    make_arena(ArenaConfig(output=str(tmp_path / "two"), rows=2_300, seed=3, lengths="short"))
    assert (tmp_path / "one/part-000000.parquet").read_bytes() == (
        tmp_path / "two/part-000000.parquet"
    ).read_bytes()
    assert run == json.loads((tmp_path / "one/run.json").read_text())
    with pq.ParquetFile(tmp_path / "one/part-000000.parquet") as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2_000, 300]
        votes = file.read()
    p = votes["best_prob_a"].to_numpy()
    assert run["rows"] == 2_300
    assert run["best_accuracy"] == pytest.approx(np.maximum(p, 1 - p).mean())
    assert run["best_log_loss"] == pytest.approx(-(p * np.log(p) + (1 - p) * np.log(1 - p)).mean())
    assert sum(run["languages"].values()) == 2_300

    stamp = (tmp_path / "one/part-000000.parquet").stat().st_mtime_ns
    assert make_arena(config) == run
    assert (tmp_path / "one/part-000000.parquet").stat().st_mtime_ns == stamp, "nothing to do"
    with pytest.raises(RunMismatchError, match=r"options\.seed: 3 -> 4.*--restart"):
        make_arena(ArenaConfig(output=config.output, rows=2_300, seed=4, lengths="short"))
