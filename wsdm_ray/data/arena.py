# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import)
"""The arena: synthetic votes in eight languages whose best reachable accuracy is known.

Somebody asks (a capital, a sum, a list, some code, a fact from notes), two simulated models answer, and a
vote is drawn. The utility of an answer is

    u = 2.0 care + 1.0 polite + 0.4 correct - 3.0 refusal - 2.5 wrong_language + 0.6 ln(1 + sentences)

with care in {-1, 0, 1} (sloppy, plain, careful), the others 0 or 1, and `sentences` the number of sentences
about the answer. A refusal has neither care nor correctness. The voter prefers response_a with probability

    p = 0.02 + 0.96 sigmoid(u_a - u_b)

so 4 % of the votes are coin flips. Everything in u can be read off the texts, so no classifier can expect to
do better than p: the mean of max(p, 1 - p) is the best accuracy, the mean entropy of p the best log loss,
exact for the rows that were made. Row i is a function of (seed, lengths, i) alone: a longer run extends a
shorter one.

Not covered: texts that make sense to read; they are put together from few phrases (`arena_texts`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wsdm_ray.config import ArenaConfig
from wsdm_ray.data.arena_phrases import LANGUAGES
from wsdm_ray.data.arena_texts import Answer, answer_text, prompt_text
from wsdm_ray.data.shards import write_shards
from wsdm_ray.runs import hold_run, options
from wsdm_ray.schema import MODEL_A, MODEL_B
from wsdm_ray.telemetry import logger

__all__ = ["ARENA_SCHEMA", "BLOCK_ROWS", "arena_batches", "make_arena", "utility"]

Lengths = Literal["real", "short"]

ARENA_SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in (
            "id", "prompt", "response_a", "response_b", "winner", "model_a", "model_b", "language", "source"
        )
    ]
    + [("best_prob_a", pa.float64())]
)  # fmt: skip

BLOCK_ROWS = 1_000
"""Rows drawn together; always a whole block, so that its rows do not depend on how many are asked for."""

SHARD_ROWS = 20_000

LANGUAGE_SHARES = np.array([0.34] + [0.66 / 7] * 7)
KINDS = ("capital", "sum", "fruits", "animals", "code", "notes")
POPULAR_SHARE = 0.05
"""Share of the prompts that many people ask, as in real arenas."""

LAPSE = 0.04

SENTENCE_TOKENS = 11
QUESTION_TOKENS = 15
ANSWER_TOKENS = 10
"""Rough sizes, to turn a wanted number of tokens into a number of sentences."""


@dataclass(frozen=True)
class LengthShape:
    """Log-normal token counts: median, sigma of the logarithm, and the most."""

    prompt: tuple[float, float, float]
    answer: tuple[float, float, float]


SHAPES: dict[str, LengthShape] = {
    "real": LengthShape(prompt=(90, 1.4, 6_000), answer=(450, 0.85, 4_000)),
    "short": LengthShape(prompt=(14, 0.6, 300), answer=(36, 0.7, 400)),
}

MODELS = (
    # name, correct, careful, sloppy, polite, refusal, wrong language, verbosity (factor)
    ("aspen-large", 0.92, 0.70, 0.05, 0.70, 0.03, 0.01, 1.40),
    ("aspen-small", 0.75, 0.45, 0.20, 0.65, 0.04, 0.02, 1.20),
    ("birch-chat", 0.80, 0.40, 0.25, 0.85, 0.06, 0.03, 1.00),
    ("cedar-9b", 0.78, 0.35, 0.30, 0.40, 0.05, 0.04, 0.90),
    ("cedar-9b-safe", 0.78, 0.35, 0.30, 0.75, 0.22, 0.03, 0.80),
    ("elm-base", 0.45, 0.10, 0.65, 0.10, 0.02, 0.09, 0.90),
    ("fir-mono", 0.85, 0.55, 0.15, 0.50, 0.03, 0.13, 1.00),
    ("hazel-terse", 0.90, 0.30, 0.15, 0.20, 0.03, 0.02, 0.45),
    ("juniper-verbose", 0.60, 0.40, 0.30, 0.60, 0.03, 0.03, 2.00),
    ("larch-mini", 0.40, 0.15, 0.55, 0.45, 0.10, 0.07, 0.70),
)
TOKENS_PER_CHARACTER = {language.name: language.tokens_per_character for language in LANGUAGES}
TRAITS = np.array([model[1:] for model in MODELS])


def utility(care, polite, correct, refusal, wrong_language, sentences):
    """How much voters like an answer; arrays of one shape in, float64 of that shape out."""
    return (
        2.0 * care
        + 1.0 * polite
        + 0.4 * correct
        - 3.0 * refusal
        - 2.5 * wrong_language
        + 0.6 * np.log1p(sentences)
    )


def make_arena(config: ArenaConfig) -> dict[str, Any]:
    """Write the votes as parquet shards and run.json beside them; returns what run.json holds.

    A folder that holds this very arena already is left as it is.

    Raises:
        RunMismatchError: the folder belongs to another run.
    """
    fingerprint = {"options": options(config)}
    with hold_run(config.output, "arena", fingerprint, config.restart, resumes=False) as run:
        if run.finished:
            logger.info("arena: %s is finished already: %s rows", config.output, f"{config.rows:,}")
            return run.finished
        tally = Tally()
        batches = (tally.add(table) for table in arena_batches(config.rows, config.seed, config.lengths))
        write_shards(config.output, ARENA_SCHEMA, batches, SHARD_ROWS, run.check)
        written = run.finish({"config": options(config), **tally.summary()})
    logger.info(
        "arena: %s votes in %s; best accuracy %.4f, best log loss %.4f",
        f"{config.rows:,}", config.output, written["best_accuracy"], written["best_log_loss"],
    )  # fmt: skip
    return written


def arena_batches(rows: int, seed: int = 0, lengths: Lengths = "real") -> Iterator[pa.Table]:
    """Tables of at most `BLOCK_ROWS` votes with `ARENA_SCHEMA`, `rows` in all, in the order of their ids."""
    for block in range(-(-rows // BLOCK_ROWS)):
        yield arena_block(block, seed, lengths).slice(0, rows - block * BLOCK_ROWS)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is decided of the R rows of a block before any text is written; [R, 2] is of both answers."""

    language_R: np.ndarray
    """Place in `LANGUAGES`."""
    kind_R: np.ndarray
    """Place in `KINDS`."""
    asked_R6: np.ndarray
    """Numbers that decide what is asked."""
    context_R: np.ndarray
    """Sentences before the question."""
    model_R2: np.ndarray
    """Place in `MODELS`."""
    spoken_R2: np.ndarray
    """Language of the answer."""
    wrong_language_R2: np.ndarray
    correct_R2: np.ndarray
    polite_R2: np.ndarray
    refusal_R2: np.ndarray
    care_R2: np.ndarray
    """-1 sloppy, 0 plain, 1 careful."""
    sentences_R2: np.ndarray
    """Sentences about the answer."""
    variant_R2: np.ndarray
    """A number that chooses among phrases."""

    def win_probability(self) -> np.ndarray:
        """The probability that the voter prefers the first answer: float64 [R]."""
        u_R2 = utility(
            self.care_R2, self.polite_R2, self.correct_R2, self.refusal_R2, self.wrong_language_R2,
            self.sentences_R2,
        )  # fmt: skip
        return LAPSE / 2 + (1 - LAPSE) / (1 + np.exp(u_R2[:, 1] - u_R2[:, 0]))


def arena_block(block: int, seed: int, lengths: Lengths) -> pa.Table:
    """The `BLOCK_ROWS` votes of a block: draw the facts, then the votes, then write the texts."""
    rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, block]))
    facts = draw_facts(rng, SHAPES[lengths])
    prob_R = facts.win_probability()
    a_wins_R = rng.random(BLOCK_ROWS) < prob_R
    sentences = int(facts.sentences_R2.sum() + facts.context_R.sum())
    words = iter(rng.integers(0, 2**15, size=sentences).tolist())
    prompts, answers_a, answers_b = write_texts(facts, words)
    first = block * BLOCK_ROWS
    return pa.table(
        [
            [f"arena-{seed}-{row}" for row in range(first, first + BLOCK_ROWS)],
            prompts,
            answers_a,
            answers_b,
            [MODEL_A if a_wins else MODEL_B for a_wins in a_wins_R],
            [MODELS[model][0] for model in facts.model_R2[:, 0]],
            [MODELS[model][0] for model in facts.model_R2[:, 1]],
            [LANGUAGES[language].name for language in facts.language_R],
            ["arena"] * BLOCK_ROWS,
            prob_R,
        ],
        schema=ARENA_SCHEMA,
    )


def draw_facts(rng: np.random.Generator, shape: LengthShape) -> Facts:
    """The facts of `BLOCK_ROWS` rows. The order of the draws decides the rows."""
    R = BLOCK_ROWS
    language_R = rng.choice(len(LANGUAGES), size=R, p=LANGUAGE_SHARES)
    kind_R = rng.integers(len(KINDS), size=R)
    popular_R = rng.random(R) < POPULAR_SHARE
    # A popular prompt has the same six numbers for everybody.
    asked_R6 = np.where(popular_R[:, None], 7, rng.integers(0, 10_000, size=(R, 6)))
    model_R2 = rng.integers(len(MODELS), size=(R, 2))
    model_R2[:, 1] = (model_R2[:, 0] + 1 + rng.integers(len(MODELS) - 1, size=R)) % len(MODELS)
    correct, careful, sloppy, polite, refusal, wrong_language, verbosity = np.moveaxis(TRAITS[model_R2], 2, 0)

    refusal_R2 = rng.random((R, 2)) < refusal
    correct_R2 = (rng.random((R, 2)) < correct) & ~refusal_R2
    polite_R2 = rng.random((R, 2)) < polite
    wrong_R2 = rng.random((R, 2)) < wrong_language
    style_R2 = rng.random((R, 2))
    shift_R2 = wrong_R2 * rng.integers(1, len(LANGUAGES), size=(R, 2))
    variant_R2 = rng.integers(0, 1_000, size=(R, 2))

    median, sigma, most = shape.answer
    task_R = rng.normal(size=(R, 1))  # some tasks ask for long answers of both
    noise_R2 = 0.7 * task_R + 0.714 * rng.normal(size=(R, 2))
    tokens_R2 = np.minimum(median * verbosity * np.exp(sigma * noise_R2), most)
    sentences_R2 = np.maximum(1, np.rint((tokens_R2 - ANSWER_TOKENS) / SENTENCE_TOKENS).astype(int))
    median, sigma, most = shape.prompt
    tokens_R = np.minimum(median * np.exp(sigma * rng.normal(size=R)), most) * ~popular_R
    return Facts(
        language_R=language_R,
        kind_R=kind_R,
        asked_R6=asked_R6,
        context_R=np.maximum(0, np.rint((tokens_R - QUESTION_TOKENS) / SENTENCE_TOKENS).astype(int)),
        model_R2=model_R2,
        spoken_R2=(language_R[:, None] + shift_R2) % len(LANGUAGES),
        wrong_language_R2=wrong_R2,
        correct_R2=correct_R2,
        polite_R2=polite_R2,
        refusal_R2=refusal_R2,
        care_R2=np.where(style_R2 < careful, 1, np.where(style_R2 > 1 - sloppy, -1, 0)) * ~refusal_R2,
        sentences_R2=np.where(refusal_R2, 1, sentences_R2),
        variant_R2=variant_R2,
    )


def write_texts(facts: Facts, words: Iterator[int]) -> tuple[list[str], list[str], list[str]]:
    """Prompts, first answers and second answers; `words` has one number a sentence."""
    prompts: list[str] = []
    answers: tuple[list[str], list[str]] = ([], [])
    traits_R26 = np.stack(
        [
            facts.correct_R2, facts.polite_R2, facts.refusal_R2, facts.care_R2, facts.sentences_R2,
            facts.variant_R2,
        ],
        axis=2,
    )  # fmt: skip
    for language, kind, asked, context, spoken_2, traits_26 in zip(
        facts.language_R.tolist(), facts.kind_R.tolist(), facts.asked_R6.tolist(), facts.context_R.tolist(),
        facts.spoken_R2.tolist(), traits_R26.tolist(), strict=True,
    ):  # fmt: skip
        prompts.append(prompt_text(LANGUAGES[language], KINDS[kind], asked, context, words))
        for column, spoken, traits in zip(answers, spoken_2, traits_26, strict=True):
            column.append(answer_text(LANGUAGES[spoken], KINDS[kind], asked, Answer(*traits), words))
    return prompts, *answers


class Tally:
    """What run.json says of the rows, counted as they stream by."""

    def __init__(self) -> None:
        self.rows = 0
        self.sums = np.zeros(4)
        self.tokens = np.zeros(32_768, np.int64)
        self.languages: dict[str, int] = {}

    def add(self, table: pa.Table) -> pa.Table:
        """Count the rows of a table, and return it."""
        p = table["best_prob_a"].to_numpy()
        a_wins = np.array(table["winner"].to_pylist()) == MODEL_A
        characters = {
            name: pc.utf8_length(table[name]).to_numpy() for name in ("prompt", "response_a", "response_b")
        }
        longer = np.sign(characters["response_a"] - characters["response_b"])
        best = np.maximum(p, 1 - p)
        entropy = -(p * np.log(p) + (1 - p) * np.log1p(-p))
        self.sums += [
            best.sum(), entropy.sum(), a_wins.sum(), np.where(longer == 0, 0.5, (longer > 0) == a_wins).sum()
        ]  # fmt: skip
        names = table["language"].to_pylist()
        per_character = np.array([TOKENS_PER_CHARACTER[name] for name in names])
        total = np.minimum(sum(characters.values()) * per_character, len(self.tokens) - 1).astype(int)
        self.tokens += np.bincount(total, minlength=len(self.tokens))
        for name in names:
            self.languages[name] = self.languages.get(name, 0) + 1
        self.rows += len(table)
        return table

    def summary(self) -> dict[str, Any]:
        best, entropy, a_wins, longer = (self.sums / self.rows).tolist()
        quantile = np.searchsorted(np.cumsum(self.tokens), np.array([0.05, 0.5, 0.95, 0.99]) * self.rows)
        return {
            "rows": self.rows,
            "best_accuracy": best,
            "best_log_loss": entropy,
            "model_a_share": a_wins,
            "longer_answer_accuracy": longer,
            "estimated_tokens": dict(zip(("p5", "median", "p95", "p99"), quantile.tolist(), strict=True)),
            "languages": dict(sorted(self.languages.items())),
        }
