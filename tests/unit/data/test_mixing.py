"""Several sets as one: shares, weights, leakage, teachers."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.data.mixing import apply_mixture, check_leakage, read_teachers, sample_weights
from wsdm_ray.data.votes import Votes
from wsdm_ray.errors import ConfigError, DataError


def votes_of(sources: list[str | None], prompts: list[str] | None = None) -> Votes:
    n = len(sources)
    table = pa.table(
        {
            "id": list(range(100, 100 + n)),
            "prompt": prompts or [f"prompt {i}" for i in range(n)],
            "response_a": ["a"] * n,
            "response_b": ["b"] * n,
            "source": pa.array(sources, pa.string()),
        }
    )
    return Votes(table, np.arange(n) / max(n - 1, 1))


def ids(votes: Votes) -> list[int]:
    return votes.table["id"].to_pylist()


def test_without_shares_nothing_changes():
    votes = votes_of(["x", None])
    assert apply_mixture(votes, {}, 0) is votes


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    shares=st.lists(st.floats(0, 3.5), min_size=4, max_size=4),
    seed=st.integers(0, 5),
)
def test_every_source_has_its_share(counts, shares, seed):
    sources: list[str | None] = [f"s{k}" for k, count in enumerate(counts) for _ in range(count)]
    named = {f"s{k}": shares[k] for k in range(len(counts) - 1)}  # the last is not named: all of it, once
    votes = votes_of(sources)
    found = apply_mixture(votes, named, seed)
    numbers = np.array(ids(found))
    assert (np.diff(numbers) >= 0).all(), "in the order of the input"
    assert np.allclose(found.prob_a_N, (numbers - 100) / max(len(sources) - 1, 1)), "each with its own label"
    times = np.bincount(numbers - 100, minlength=len(sources))
    for k, count in enumerate(counts):
        own = times[[source == f"s{k}" for source in sources]]
        share = named.get(f"s{k}", 1.0)
        assert own.sum() == round(share * count)
        assert own.max() - own.min() <= 1


def test_the_choice_is_of_seed_and_id_alone():
    votes = votes_of(["x"] * 20)
    chosen = set(ids(apply_mixture(votes, {"x": 0.5}, 3)))
    backwards = votes.take(np.arange(20)[::-1])
    assert set(ids(apply_mixture(backwards, {"x": 0.5}, 3))) == chosen
    assert set(ids(apply_mixture(votes, {"x": 0.5}, 4))) != chosen
    assert set(ids(apply_mixture(votes, {"x": 0.75}, 3))) > chosen, (
        "a larger share keeps what a smaller one has"
    )


def test_rows_without_a_source_have_a_name():
    votes = votes_of([None, "x", None, None, None])
    assert len(apply_mixture(votes, {"(none)": 0.5}, 0)) == 3
    assert sample_weights(votes.sources_N, {"(none)": 0.0}).tolist() == [0, 5, 0, 0, 0]
    table = votes.table.drop_columns("source")
    assert set(dataclasses.replace(votes, table=table).sources_N) == {"(none)"}


def test_unknown_sources_are_told_their_nearest():
    votes = votes_of(["lmsys-57k", "wsdm", None])
    with pytest.raises(ConfigError, match=r"--mix lmsys-57: no row .* did you mean lmsys-57k\?"):
        apply_mixture(votes, {"lmsys-57": 0.5}, 0)
    with pytest.raises(
        ConfigError, match=r"--objective.source-weights q: .* there are: \(none\), lmsys-57k, wsdm"
    ):
        sample_weights(votes.sources_N, {"q": 0.5})
    with pytest.raises(ConfigError, match="--mix: leaves no row"):
        apply_mixture(votes_of(["x"]), {"x": 0.2}, 0)


def test_weights_by_hand():
    sources = np.array(["x", "x", "y", ""], object)
    assert sample_weights(sources, {}).tolist() == [1, 1, 1, 1]
    # 3, 3, 1, 1 with a mean of 2
    assert sample_weights(sources, {"x": 3.0}).tolist() == [1.5, 1.5, 0.5, 0.5]
    assert sample_weights(sources, {"x": 0.0}).tolist() == [0, 0, 2, 2]
    with pytest.raises(ConfigError, match="leave no row with a weight above 0"):
        sample_weights(np.array(["x"], object), {"x": 0.0})


def test_leakage_across_sets():
    train = votes_of(["x", "y"], ["What  is IT?", "other"])
    check_leakage(train, votes_of(["z"], ["what is that?"]))
    with pytest.raises(DataError) as caught:
        check_leakage(train, votes_of(["z", "z"], ["new", "what is\nit?"]))
    assert str(caught.value) == (
        "1 of 2 valid rows have a prompt that is in train too (first: id 101, in train as id 100); run "
        "`python -m jobs.prepare` on the train set with --exclude and the valid set, or give --allow-leakage"
    )


def write(folder, rows: dict, name: str = "part-000000.parquet") -> str:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(rows), folder / name)
    return str(folder)


def test_teachers_by_id(tmp_path):
    one = write(tmp_path / "one", {"id": [3, 1, 9], "prob_a": [0.3, 0.1, 0.9]})
    two = write(tmp_path / "two", {"id": [1], "prob_a": [0.5]})
    write(tmp_path / "two", {"id": [4], "prob_a": pa.array([None], pa.float32())}, "part-000001.parquet")
    found = read_teachers([one, two], pa.chunked_array([[1, 2, 3, 4, 1]]))
    np.testing.assert_allclose(found, [0.3, np.nan, 0.3, np.nan, 0.3])
    assert np.isnan(read_teachers([], pa.chunked_array([[1, 2]]))).all()


def test_teachers_that_cannot_be_joined(tmp_path):
    numbers = pa.chunked_array([[1, 2]])
    with pytest.raises(DataError, match=r"has none of the ids to train on \(its first is a, theirs 1\)"):
        read_teachers([write(tmp_path / "text", {"id": ["a"], "prob_a": [0.5]})], numbers)
    with pytest.raises(DataError, match="holds an id twice"):
        read_teachers([write(tmp_path / "twice", {"id": [1, 1], "prob_a": [0.5, 0.6]})], numbers)
    with pytest.raises(DataError, match=r"has none of the ids to train on \(its first is 7, theirs 1\)"):
        read_teachers([write(tmp_path / "none", {"id": [7], "prob_a": [0.5]})], numbers)
    with pytest.raises(DataError, match="no column prob_a"):
        read_teachers([write(tmp_path / "votes", {"id": [1], "winner": ["model_a"]})], numbers)
