"""Probabilities mirror exactly, and means of them too."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.scoring.probabilities import combine, combine_models, to_probability

finite = st.floats(-1e4, 1e4)


@given(st.lists(finite, min_size=1, max_size=9), st.floats(0.01, 100))
def test_probabilities_mirror_exactly(values, temperature):
    odds = np.asarray(values, np.float32)
    p, q = to_probability(odds, temperature), to_probability(-odds, temperature)
    np.testing.assert_array_equal(q, 1 - p)
    np.testing.assert_array_equal(np.float32(q), np.float32(1) - np.float32(p))
    assert ((p >= 0) & (p <= 1)).all()
    np.testing.assert_allclose(
        p, 0.5 + 0.5 * np.tanh(odds.astype(float) / temperature / 2), rtol=0, atol=2.0**-24
    )


@given(st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=9))
def test_means_mirror_exactly(rows):
    odds = np.asarray(rows, np.float32)
    p, q = combine(to_probability(odds)), combine(to_probability(-odds))
    assert p.dtype == np.float32
    np.testing.assert_array_equal(q, np.float32(1) - p)


def test_models_are_weighed_by_hand():
    # Two models, two rows: the second row has one ordering of the first model alone.
    probabilities = np.array([[[0.75, 0.25], [0.75, 0.1]], [[1.0, 0.75], [0.9, 0.9]]])
    ran = np.array([[[True, True], [True, False]], [[True, True], [False, False]]])
    np.testing.assert_array_equal(combine_models(probabilities, ran, [1, 1]), [0.6875, 0.75])
    np.testing.assert_array_equal(combine_models(probabilities, ran, [1, 3]), [0.78125, 0.75])
    assert np.isnan(combine_models(probabilities, np.zeros_like(ran), [1, 3])).all()
    probabilities[1, 0, 1] = np.nan
    assert np.isnan(combine_models(probabilities, ran, [1, 1])).tolist() == [True, False]


@given(
    st.lists(st.tuples(*[finite] * 6), min_size=1, max_size=9),
    st.tuples(*[st.floats(0.01, 100)] * 3),
    st.data(),
)
def test_weighted_means_mirror_exactly(rows, weights, data):
    odds = np.asarray(rows, np.float32).reshape(-1, 3, 2).transpose(1, 0, 2)
    ran = np.array(data.draw(st.lists(st.booleans(), min_size=odds.size, max_size=odds.size)), bool).reshape(
        odds.shape
    )
    p = combine_models(to_probability(odds), ran, weights)
    # Exchanging the responses exchanges the orderings, too.
    q = combine_models(to_probability(-odds[:, :, ::-1]), ran[:, :, ::-1], weights)
    np.testing.assert_array_equal(q, np.float32(1) - p)


def test_probabilities_by_hand():
    assert to_probability(np.float32([0.0])).tolist() == [0.5]
    np.testing.assert_allclose(to_probability(np.float32([np.log(3)])), [0.75], atol=1e-7)
    np.testing.assert_allclose(to_probability(np.float32([2 * np.log(3)]), 2.0), [0.75], atol=1e-7)
    np.testing.assert_allclose(combine(np.array([[0.75, 0.25], [1.0, 0.5]])), [0.5, 0.75])
    assert np.isnan(combine(np.array([[np.nan, 0.5]]))).all()
