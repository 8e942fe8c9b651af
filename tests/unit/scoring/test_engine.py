"""The engine: probabilities of swapped pairs add up to 1 exactly, and a pair's neighbours do not matter."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scoring.conftest import random_texts
from wsdm_ray.errors import ConfigError, ModelError
from wsdm_ray.modeling.attention import BLOCK
from wsdm_ray.modeling.loading import load_classifier, load_fused_classifier
from wsdm_ray.modeling.scorers import FusedClassifier
from wsdm_ray.packing.layouts import Layout
from wsdm_ray.packing.plan import pair_tokens
from wsdm_ray.packing.ragged import Ragged
from wsdm_ray.schema import orderings_of
from wsdm_ray.scoring import engine
from wsdm_ray.scoring.engine import (
    NOT_FINITE,
    BatchRunner,
    DeviceLostError,
    combine,
    combine_models,
    log_odds,
    to_probability,
)
from wsdm_ray.text.encoding import EncodedPairs, PairEncoder

LAYOUTS = ("padded", "packed", "shared")
BOTH = orderings_of("both")


@pytest.fixture(scope="module")
def network(classifiers) -> Any:
    return load_classifier(classifiers[0].folder, precision="fp32")[0]


@pytest.fixture(scope="module")
def encoder(classifiers) -> PairEncoder:
    return PairEncoder(classifiers[0].folder, classifiers[0].manifest.text)


@pytest.fixture(scope="module")
def texts() -> list[list[str]]:
    """Prompts, responses a and responses b of 60 pairs."""
    return [random_texts(60, seed) for seed in range(3)]


def probabilities(network: Any, pairs: EncodedPairs, layout: str, orders: str = "both", budget: int = 600):
    scores = log_odds(network, pairs, orderings_of(orders), layout=layout, token_budget=budget)
    return combine(to_probability(scores.log_odds_NO))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_swapping_the_responses_gives_exactly_the_rest(network, encoder, texts, layout):
    prompts, a, b = texts
    p = probabilities(network, encoder.encode(prompts, a, b), layout)
    q = probabilities(network, encoder.encode(prompts, b, a), layout)
    assert p.dtype == np.float32
    np.testing.assert_array_equal(q, np.float32(1) - p)
    assert p.std() > 0.02, "the model tells pairs apart"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_swapping_some_rows_leaves_the_others(network, encoder, texts, layout):
    prompts, a, b = texts
    flip = np.arange(60) % 3 == 0
    mixed_a, mixed_b = (
        [(y if flip[i] else x) for i, (x, y) in enumerate(zip(*columns, strict=True))]
        for columns in ((a, b), (b, a))
    )
    p = probabilities(network, encoder.encode(prompts, a, b), layout)
    q = probabilities(network, encoder.encode(prompts, mixed_a, mixed_b), layout)
    np.testing.assert_array_equal(q, np.where(flip, np.float32(1) - p, p))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_swapping_exchanges_the_orderings_too(network, encoder, texts, layout):
    prompts, a, b = texts
    options = {"layout": layout, "token_budget": 600}
    given_ab = log_odds(network, encoder.encode(prompts, a, b), BOTH, **options).log_odds_NO
    given_ba = log_odds(network, encoder.encode(prompts, b, a), BOTH, **options).log_odds_NO
    differ = np.array([x != y for x, y in zip(a, b, strict=True)])
    np.testing.assert_array_equal(given_ab[differ, 0], -given_ba[differ, 1])
    np.testing.assert_array_equal(given_ab[differ, 1], -given_ba[differ, 0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_identical_responses_are_a_tie(network, encoder, texts, layout):
    prompts, a, _ = texts
    p = probabilities(network, encoder.encode(prompts, a, a), layout)
    np.testing.assert_array_equal(p, np.float32(0.5))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("orders", ["both", "ab", "ba"])
def test_neighbours_do_not_matter(network, encoder, texts, layout, orders):
    together = probabilities(network, encoder.encode(*texts), layout, orders, budget=1_500)
    alone = [
        probabilities(network, encoder.encode(*([column[i]] for column in texts)), "padded", orders)[0]
        for i in range(0, 60, 6)
    ]
    # float32 on a CPU: the sums of a longer row are taken in another order.
    np.testing.assert_allclose(together[::6], alone, rtol=0, atol=1e-5)
    backwards = [column[::-1] for column in texts]
    turned = probabilities(network, encoder.encode(*backwards), layout, orders, budget=300)
    np.testing.assert_allclose(turned[::-1], together, rtol=0, atol=1e-5)


def test_layouts_agree(network, encoder, texts):
    pairs = encoder.encode(*texts)
    expected = log_odds(network, pairs, BOTH, layout="padded", token_budget=600)
    for layout in ("packed", "shared"):
        found = log_odds(network, pairs, BOTH, layout=layout, token_budget=600)
        np.testing.assert_allclose(found.log_odds_NO, expected.log_odds_NO, rtol=0, atol=1e-5)
        assert found.forward_tokens < expected.forward_tokens


def test_one_ordering_is_half_of_both(network, encoder, texts):
    pairs = encoder.encode(*texts)
    both = log_odds(network, pairs, BOTH, layout="packed", token_budget=600).log_odds_NO
    for orders, column in (("ab", 0), ("ba", 1)):
        one = log_odds(network, pairs, orderings_of(orders), layout="packed", token_budget=600).log_odds_NO
        assert one.shape == (60, 1)
        np.testing.assert_allclose(one[:, 0], both[:, column], rtol=0, atol=1e-5)


def test_ba_is_of_the_given_response_a(network, encoder, texts):
    prompts, a, b = texts
    ba = log_odds(
        network, encoder.encode(prompts, a, b), orderings_of("ba"), layout="padded", token_budget=600
    )
    ab = log_odds(
        network, encoder.encode(prompts, b, a), orderings_of("ab"), layout="padded", token_budget=600
    )
    np.testing.assert_array_equal(ba.log_odds_NO, -ab.log_odds_NO)


@pytest.mark.parametrize("orders", ["both", "ab"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_becomes_nan_of_its_row_alone(monkeypatch, network, encoder, texts, orders, bad):
    pairs = encoder.encode(*texts)
    marked = int(pairs.suffix_ab[7][:-1].max())
    orderings = orderings_of(orders)
    clean = log_odds(network, pairs, orderings, layout="padded", token_budget=600).log_odds_NO
    real = engine.ordering_logits

    def spoiled(network, layout):
        logits = real(network, layout)
        rows = torch.from_numpy((layout.tokens_BT == marked).any(axis=1))
        logits[rows, 0] = bad
        return logits

    monkeypatch.setattr(engine, "ordering_logits", spoiled)
    found = log_odds(network, pairs, orderings, layout="padded", token_budget=600).log_odds_NO
    hit = np.array([marked in [*pairs.prefix[i], *pairs.suffix_ab[i]] for i in range(60)])
    assert 0 < hit.sum() < 60
    assert np.isnan(found[hit]).all()
    np.testing.assert_array_equal(found[~hit], clean[~hit])


def test_one_row_that_is_not_a_number_among_good_ones(monkeypatch, fake):
    pairs = pairs_of([5, 4, 7, 3])
    marked = int(pairs.prefix[2][0])
    monkeypatch.setattr(engine, "ordering_logits", breaking(fake, marked, torch.tensor(float("nan"))))
    scores = log_odds(torch.nn.Module(), pairs, BOTH, layout="padded", token_budget=100)
    assert scores.errors_N.tolist() == [None, None, NOT_FINITE, None]
    assert np.isnan(scores.log_odds_NO).all(axis=1).tolist() == [False, False, True, False]


def test_no_pairs(network, encoder):
    scores = log_odds(network, encoder.encode([], [], []), BOTH, layout="shared", token_budget=600)
    assert scores.log_odds_NO.shape == (0, 2)
    assert scores.forward_tokens == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pair_over_the_budget_that_memory_lowered_has_a_pass_of_its_own(network, encoder, texts, layout):
    pairs = encoder.encode(*texts)
    expected = log_odds(network, pairs, BOTH, layout=layout, token_budget=600)
    found = log_odds(network, pairs, BOTH, layout=layout, token_budget=60, most_tokens=600)
    np.testing.assert_allclose(found.log_odds_NO, expected.log_odds_NO, rtol=0, atol=1e-5)
    assert (found.token_budget, found.halved) == (60, 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pair_over_the_budget_asked_for_is_an_error_of_its_row(network, encoder, texts, layout):
    pairs = encoder.encode(*texts)
    expected = log_odds(network, pairs, BOTH, layout=layout, token_budget=600).log_odds_NO
    found = log_odds(network, pairs, BOTH, layout=layout, token_budget=120)
    tokens = pairs.prefix.lengths * (1 if layout == "shared" else 2) + 2 * pairs.suffix_ab.lengths
    tokens = np.where(engine.identical(pairs), pairs.tokens_N, tokens)
    over = tokens > 120
    assert 0 < over.sum() < 60
    assert found.errors_N[over].tolist() == [
        f"takes {number} tokens in the layout {layout}, over the token budget of 120; score it with a higher "
        "--token-budget or a lower --max-tokens"
        for number in tokens[over]
    ]
    assert found.errors_N[~over].tolist() == [None] * int((~over).sum())
    np.testing.assert_allclose(found.log_odds_NO[~over], expected[~over], rtol=0, atol=1e-5)
    assert np.isnan(found.log_odds_NO[over]).all()


def test_pairs_that_are_all_over_the_budget_are_errors_of_their_rows(fake):
    found = score(pairs_of([30, 30, 30]), 50)
    assert all("takes 60 tokens in the layout padded" in error for error in found.errors_N)
    assert found.forward_tokens == 0


@pytest.fixture(scope="module")
def stack(classifiers) -> FusedClassifier:
    """The classifier as a stack that wants rows of a fixed number of tokens, as on a GPU."""
    made, _ = load_fused_classifier(classifiers[0].folder, precision="fp32")
    made.static_shapes = True
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("budget", [256, 600])
def test_a_stack_has_rows_of_the_budget_alone(monkeypatch, network, stack, encoder, texts, layout, budget):
    pairs = encoder.encode(*texts)
    expected = log_odds(network, pairs, BOTH, layout="padded", token_budget=600)
    sizes: list[tuple[int, ...]] = []
    real = engine.ordering_logits

    def run(network, layout):
        sizes.append(layout.tokens_BT.shape)
        return real(network, layout)

    monkeypatch.setattr(engine, "ordering_logits", run)
    found = log_odds(stack, pairs, BOTH, layout=layout, token_budget=budget)
    assert set(sizes) == {(1, 256 if budget == 256 else 640)}
    np.testing.assert_allclose(found.log_odds_NO, expected.log_odds_NO, rtol=0, atol=1e-5)
    assert found.errors_N.tolist() == [None] * 60
    assert found.forward_tokens == sum(row for _, row in sizes)
    swapped = encoder.encode(texts[0], texts[2], texts[1])
    other = log_odds(stack, swapped, BOTH, layout=layout, token_budget=budget)
    p, q = (combine(to_probability(scores.log_odds_NO)) for scores in (found, other))
    np.testing.assert_array_equal(q, np.float32(1) - p)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_aligned_groups_take_no_room_from_a_pair(monkeypatch, network, stack, encoder, texts, layout):
    pairs = encoder.encode(*texts)
    expected = log_odds(network, pairs, BOTH, layout="padded", token_budget=600).log_odds_NO
    starts, real = set(), engine.ordering_logits

    def run(network, layout):
        groups = layout.groups_BT.reshape(-1)
        starts.update(np.flatnonzero((np.diff(groups, prepend=-1) != 0) & (groups >= 0)).tolist())
        return real(network, layout)

    monkeypatch.setattr(engine, "ordering_logits", run)
    tokens_N = pair_tokens(layout, pairs.prefix.lengths, pairs.suffix_ab.lengths, 2)
    tokens_N[engine.identical(pairs)] //= 2  # run once
    most = int(tokens_N.max())
    alignment = 7 + (most % 7 == 0)
    assert most % alignment, "as it is it fits, aligned it is longer than the budget"
    monkeypatch.setattr(FusedClassifier, "alignment", alignment)
    for budget in (most, 600):
        found = log_odds(stack, pairs, BOTH, layout=layout, token_budget=budget)
        assert found.errors_N.tolist() == [None] * 60
        np.testing.assert_allclose(found.log_odds_NO, expected, rtol=0, atol=1e-5)
    assert len(starts) > 3
    assert all(start % alignment == 0 for start in starts)
    found = log_odds(stack, pairs, BOTH, layout=layout, token_budget=most - 1)
    over = tokens_N == most
    assert [error is not None for error in found.errors_N] == over.tolist()
    assert f"takes {most} tokens in the layout {layout}" in found.errors_N[over][0]


def test_rows_beyond_the_budget_have_few_sizes(stack):
    runs = engine.BatchRunner(stack, "shared", 256, 10**6, True, 1, 1, set(), np.empty(0, object))
    sizes = {tokens: runs.size(tokens) for tokens in range(1, 16_385)}
    assert {sizes[tokens] for tokens in range(1, 257)} == {256}
    assert len(set(sizes.values())) < 32
    assert all(tokens <= size <= max(1.25 * tokens, tokens + 128, 256) for tokens, size in sizes.items())


def test_halved_budgets_of_fixed_rows_are_whole_blocks(stack):
    runs = engine.BatchRunner(stack, "shared", 16_896, 16_896, True, 1, 1, set(), np.empty(0, object))
    assert runs.least(16_385) == 16_896, "not more than the budget that was asked for"
    assert runs.least(16_897) > 16_896
    budgets = []
    while runs.token_budget > BLOCK:
        runs.halve(runs.token_budget)
        budgets.append(runs.token_budget)
    assert budgets == [8_448, 4_224, 2_048, 1_024, 512, 256, 128]
    runs.halve(128)
    assert (runs.token_budget, runs.halved) == (64, 8)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("room", [511, 128, 127])
def test_where_memory_runs_out_a_stack_has_shorter_rows(monkeypatch, stack, encoder, texts, layout, room):
    pairs = encoder.encode(*texts)
    expected = log_odds(stack, pairs, BOTH, layout=layout, token_budget=1_024)
    real, sizes = engine.ordering_logits, []

    def run(network, layout):
        sizes.append(layout.tokens_BT.size)
        if sizes[-1] > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(network, layout)

    monkeypatch.setattr(engine, "ordering_logits", run)
    if room < 128:
        with pytest.raises(ModelError, match="pairs of a unit fail, each alone: out of memory at"):
            log_odds(stack, pairs, BOTH, layout=layout, token_budget=1_024)
        return
    found = log_odds(stack, pairs, BOTH, layout=layout, token_budget=1_024)
    assert all(size % 128 == 0 for size in sizes)
    assert found.token_budget <= max(room, 128)
    assert found.errors_N.tolist() == [None] * 60
    np.testing.assert_allclose(found.log_odds_NO, expected.log_odds_NO, rtol=0, atol=1e-5)


def test_only_what_is_wanted_is_run(network, encoder, texts):
    prompts, a, b = texts
    pairs = encoder.encode(prompts, a, [*a[:6], *b[6:]])
    expected = log_odds(network, pairs, BOTH, layout="padded", token_budget=600)
    wanted = np.random.default_rng(0).random((60, 2)) < 0.5
    assert {tuple(row) for row in wanted.tolist()} == {(a, b) for a in (True, False) for b in (True, False)}
    found = log_odds(network, pairs, BOTH, layout="padded", token_budget=600, wanted_NO=wanted)
    same = engine.identical(pairs)
    assert np.flatnonzero(same).tolist() == [*range(6)]
    known = wanted | (wanted.any(axis=1) & same)[:, None]
    np.testing.assert_array_equal(np.isfinite(found.log_odds_NO), known)
    np.testing.assert_allclose(found.log_odds_NO[known], expected.log_odds_NO[known], rtol=0, atol=1e-5)
    assert found.forward_tokens < expected.forward_tokens
    assert found.errors_N.tolist() == [None] * 60


# What fails, with a fake model: an ordering's logits are a function of its tokens alone.


def fake_logits(network: object, layout: Layout) -> torch.Tensor:
    """Logits of a padded pass: from the sum of the tokens, each times its position."""
    value = (layout.tokens_BT * (layout.groups_BT >= 0) * (layout.positions_BT + 1)).sum(axis=1)
    return torch.from_numpy(np.stack([np.sin(value), np.cos(value)], axis=1)).float()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[object, Layout], torch.Tensor]:
    monkeypatch.setattr(engine, "ordering_logits", fake_logits)
    return fake_logits


def pairs_of(lengths: list[int]) -> EncodedPairs:
    """Pairs whose orderings have so many tokens, at least 3; the first token is the pair's own."""
    number = len(lengths)
    return EncodedPairs(
        Ragged.from_lists([np.array([100 + i]) for i in range(number)]),
        Ragged.from_lists([np.arange(length - 1) for length in lengths]),
        Ragged.from_lists([np.arange(length - 1)[::-1] for length in lengths]),
        np.zeros(number, np.int32),
        np.arange(number) % 2 == 1,
    )


def breaking(real: Callable[..., torch.Tensor], marked: int, what: Exception | torch.Tensor):
    """`real`, but passes with the token `marked` raise, or have `what` as the logits of its rows."""

    def run(network: object, layout: Layout) -> torch.Tensor:
        hit = (layout.tokens_BT == marked).any(axis=1)
        if isinstance(what, Exception) and hit.any():
            raise what
        logits = real(network, layout)
        if isinstance(what, torch.Tensor):
            logits[torch.from_numpy(hit)] = what
        return logits

    return run


def with_room_for(tokens: int, passes: list[int], error: Exception | None = None):
    """The fake model on a device where passes of more tokens run out of memory; notes the size of each."""

    def run(network: object, layout: Layout) -> torch.Tensor:
        passes.append(layout.tokens_BT.size)
        if layout.tokens_BT.size > tokens:
            raise error or torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return fake_logits(network, layout)

    return run


def score(pairs: EncodedPairs, budget: int = 100, **options: Any) -> engine.Scores:
    return log_odds(torch.nn.Module(), pairs, BOTH, layout="padded", token_budget=budget, **options)


OUT_OF_MEMORY = (
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_where_memory_runs_out_the_budget_is_halved_and_all_goes_on(monkeypatch, fake, error):
    pairs = pairs_of([9, 9, 8, 8, 7, 6, 5, 4])
    expected = score(pairs, 160)
    passes: list[int] = []
    monkeypatch.setattr(engine, "ordering_logits", with_room_for(45, passes, error))
    found = score(pairs, 160)
    # Pairs of 18 18 16 16 14 12 10 8 tokens, the longest of a pass deciding: all, then 4 in 80, then 2 in 40.
    assert passes == [144, 72, 36, 32, 28, 20]
    assert (found.token_budget, found.halved) == (40, 2)
    assert found.errors_N.tolist() == [None] * 8
    np.testing.assert_array_equal(found.log_odds_NO, expected.log_odds_NO)
    assert found.forward_tokens == sum(passes[2:])


@given(st.lists(st.integers(3, 40), max_size=20), st.integers(1, 400), st.integers(6, 300), st.integers(1, 3))
def test_whatever_the_memory_a_row_has_its_value_or_says_why(lengths, budget, room, at_once):
    pairs = pairs_of(lengths)
    passes: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "max_in_flight", lambda network: at_once)
        patch.setattr(engine, "ordering_logits", fake_logits)
        expected = score(pairs, 1_000).log_odds_NO
        patch.setattr(engine, "ordering_logits", with_room_for(room, passes))
        fits = [length <= room for length in lengths]
        if len(lengths) > 1 and not any(fits):
            with pytest.raises(ModelError, match="pairs of a unit fail, each alone: out of memory at"):
                score(pairs, budget, most_tokens=1_000)
            return
        found = score(pairs, budget, most_tokens=1_000)
    for row, length in enumerate(lengths):
        if fits[row]:
            assert found.errors_N[row] is None
            np.testing.assert_array_equal(found.log_odds_NO[row], expected[row])
        else:
            assert (
                found.errors_N[row] == f"out of memory at {length} tokens; score it with a lower --max-tokens"
            )
            assert np.isnan(found.log_odds_NO[row]).all()
    assert found.token_budget == budget >> found.halved


def test_what_was_started_behind_a_pass_that_fails_late_starts_again(monkeypatch, fake):
    pairs = pairs_of([9, 9, 8, 8, 7, 6, 5, 4])
    expected = score(pairs, 160)
    passes: list[int] = []
    late = iter([True])

    class Late(engine.PendingTensor):
        def wait(self) -> np.ndarray:
            if next(late, False):
                raise RuntimeError("late")
            return super().wait()

    monkeypatch.setattr(engine, "PendingTensor", Late)
    monkeypatch.setattr(engine, "ordering_logits", with_room_for(1_000, passes))
    monkeypatch.setattr(engine, "max_in_flight", lambda network: 2)
    found = score(pairs, 80)
    assert passes == [72, 56, 18, 18, 16, 16, 56], "the pairs of the first run alone, then the second runs"
    assert found.forward_tokens == sum(passes[2:])
    assert found.errors_N.tolist() == [None] * 8
    np.testing.assert_array_equal(found.log_odds_NO, expected.log_odds_NO)


def test_a_pair_that_does_not_fit_runs_its_orderings_one_by_one(monkeypatch, fake):
    pairs = pairs_of([30, 10])
    expected = score(pairs)
    passes: list[int] = []
    monkeypatch.setattr(engine, "ordering_logits", with_room_for(40, passes))
    found = score(pairs)
    assert passes == [60, 30, 30, 20]
    np.testing.assert_array_equal(found.log_odds_NO, expected.log_odds_NO)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no kernel for this shape\nsecond line"), "no kernel for this shape"),
        (IndexError("index out of range in self"), "index out of range in self"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_pair_that_fails_alone_spoils_no_other(monkeypatch, fake, error, reason):
    pairs = pairs_of([9, 8, 7, 6, 5])
    expected = score(pairs)
    monkeypatch.setattr(engine, "ordering_logits", breaking(fake, 102, error))
    found = score(pairs)
    assert found.errors_N.tolist() == [None, None, f"the model fails on this row ({reason})", None, None]
    assert (found.halved, found.token_budget) == (0, 100)
    good = [0, 1, 3, 4]
    np.testing.assert_array_equal(found.log_odds_NO[good], expected.log_odds_NO[good])


def test_what_fails_on_every_pair_is_no_pairs_fault(monkeypatch):
    def fail(network, layout):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    monkeypatch.setattr(engine, "ordering_logits", fail)
    with pytest.raises(ModelError) as caught:
        score(pairs_of([5, 4, 3]))
    assert str(caught.value) == (
        "all 3 pairs of a unit fail, each alone: the model fails on this row (FlashAttention only supports "
        "Ampere GPUs or newer.); try --precision fp32"
    )
    [error] = score(pairs_of([5])).errors_N
    assert error.startswith("the model fails on this row (Flash"), "one pair is not enough to tell"


def test_errors_of_ours_and_defects_keep_their_kind(monkeypatch):
    for error in (ConfigError("an option"), TypeError("a defect")):

        def fail(network, layout, error=error):
            raise error

        monkeypatch.setattr(engine, "ordering_logits", fail)
        with pytest.raises(type(error), match=str(error)):
            score(pairs_of([5, 4]))


@pytest.mark.parametrize(
    "reason", ["device-side assert triggered", "an illegal memory access was encountered"]
)
def test_a_lost_gpu_names_the_pairs_of_its_pass(monkeypatch, fake, reason):
    pairs = pairs_of([20, 9, 9, 9, 5])
    error = torch.AcceleratorError(f"CUDA error: {reason}\nCompile with TORCH_USE_CUDA_DSA")
    monkeypatch.setattr(engine, "ordering_logits", breaking(fake, 102, error))
    with pytest.raises(DeviceLostError) as caught:
        score(pairs, 54)
    assert caught.value.pairs == [1, 2, 3]
    assert caught.value.reason == f"CUDA error: {reason}"
    monkeypatch.setattr(engine, "max_in_flight", lambda network: 2)
    with pytest.raises(DeviceLostError) as caught:
        score(pairs, 54)
    assert caught.value.pairs == [0, 1, 2, 3], "whichever of those that ran it was"
    with pytest.raises(DeviceLostError) as caught:
        score(pairs, 54, alone={1, 2, 3})
    assert caught.value.pairs == [2]


@pytest.mark.parametrize("at", ["wait", "free_memory"])
def test_a_gpu_that_is_lost_while_passes_run_names_all_of_them(monkeypatch, fake, at):
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    class Lost(engine.PendingTensor):
        def wait(self) -> np.ndarray:
            raise lost

    def fail() -> None:
        raise lost

    if at == "wait":
        monkeypatch.setattr(engine, "PendingTensor", Lost)
    else:  # the second pass fails on the host, when the first has lost the GPU
        monkeypatch.setattr(engine, "ordering_logits", breaking(fake, 102, RuntimeError("no kernel")))
        monkeypatch.setattr(engine, "free_memory", fail)
    monkeypatch.setattr(engine, "max_in_flight", lambda network: 2)
    with pytest.raises(DeviceLostError) as caught:
        score(pairs_of([20, 9, 9, 9, 5]), 54)
    assert caught.value.pairs == [0, 1, 2, 3]


def test_nothing_is_started_behind_a_pass_that_failed(monkeypatch, fake):
    passes: list[int] = []
    fails = breaking(fake, 101, RuntimeError("no kernel"))

    def run(network: object, layout: Layout) -> torch.Tensor:
        passes.append(int(layout.tokens_BT[0, 0]))
        return fails(network, layout)

    monkeypatch.setattr(engine, "ordering_logits", run)
    monkeypatch.setattr(engine, "max_in_flight", lambda network: 2)
    found = score(pairs_of([20, 19, 18, 17]), 40)
    assert passes == [100, 101, 102, 103]
    assert [error is None for error in found.errors_N] == [True, False, True, True]


@given(
    st.lists(st.integers(1, 50), max_size=30),
    st.integers(1, 300),
    st.sets(st.integers(0, 29)),
    st.sampled_from(LAYOUTS),
)
def test_a_plan_holds_each_row_once_and_suspects_last(tokens, budget, alone, layout):
    tokens_N = np.array(tokens, np.int64)
    rows = np.arange(len(tokens))[::2]
    errors_N = np.full(len(tokens), None, object)
    runs = BatchRunner(torch.nn.Module(), layout, budget, 300, False, 1, 1, alone, errors_N)
    plan = [indices.tolist() for indices in runs.plan(tokens_N, rows)]
    assert sorted(row for indices in plan for row in indices) == rows.tolist()
    for indices in plan:
        cost = (
            len(indices) * max(tokens[i] for i in indices)
            if layout == "padded"
            else sum(tokens[i] for i in indices)
        )
        assert cost <= budget or len(indices) == 1
    suspect_rows = [indices for indices in plan if alone & set(indices)]
    assert all(len(indices) == 1 for indices in suspect_rows)
    assert plan[len(plan) - len(suspect_rows) :] == suspect_rows


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
