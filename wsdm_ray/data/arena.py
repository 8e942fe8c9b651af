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

Not covered: texts that make sense to read; they are put together from few phrases (`arena_phrases`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wsdm_ray.config import ArenaConfig
from wsdm_ray.data.arena_phrases import LANGUAGES, Language
from wsdm_ray.data.shards import write_shards
from wsdm_ray.runs import finish_run, open_run, options
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
    done = open_run(config.output, "arena", fingerprint, config.restart, resumes=False)
    if done:
        logger.info("arena: %s is finished already: %s rows", config.output, f"{config.rows:,}")
        return done
    tally = Tally()
    batches = (tally.add(table) for table in arena_batches(config.rows, config.seed, config.lengths))
    write_shards(config.output, ARENA_SCHEMA, batches, SHARD_ROWS)
    run = finish_run(config.output, "arena", fingerprint, {"config": options(config), **tally.summary()})
    logger.info(
        "arena: %s votes in %s; best accuracy %.4f, best log loss %.4f",
        f"{config.rows:,}", config.output, run["best_accuracy"], run["best_log_loss"],
    )  # fmt: skip
    return run


def arena_batches(rows: int, seed: int = 0, lengths: Lengths = "real") -> Iterator[pa.Table]:
    """Tables of at most `BLOCK_ROWS` votes with `ARENA_SCHEMA`, `rows` in all, in the order of their ids."""
    for block in range(-(-rows // BLOCK_ROWS)):
        yield arena_block(block, seed, lengths).slice(0, rows - block * BLOCK_ROWS)


def arena_block(block: int, seed: int, lengths: Lengths) -> pa.Table:
    """The `BLOCK_ROWS` votes of a block: draw the facts (R rows by 2 answers), then write the texts."""
    shape = SHAPES[lengths]
    R = BLOCK_ROWS
    rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, block]))
    language_R = rng.choice(len(LANGUAGES), size=R, p=LANGUAGE_SHARES)
    kind_R = rng.integers(len(KINDS), size=R)
    popular_R = rng.random(R) < POPULAR_SHARE
    # Six numbers decide what is asked; a popular prompt has the same six for everybody.
    asked_R6 = np.where(popular_R[:, None], 7, rng.integers(0, 10_000, size=(R, 6)))
    model_R2 = rng.integers(len(MODELS), size=(R, 2))
    model_R2[:, 1] = (model_R2[:, 0] + 1 + rng.integers(len(MODELS) - 1, size=R)) % len(MODELS)
    correct, careful, sloppy, polite, refusal, wrong_language, verbosity = np.moveaxis(TRAITS[model_R2], 2, 0)

    refusal_R2 = rng.random((R, 2)) < refusal
    correct_R2 = (rng.random((R, 2)) < correct) & ~refusal_R2
    polite_R2 = rng.random((R, 2)) < polite
    wrong_R2 = rng.random((R, 2)) < wrong_language
    style_R2 = rng.random((R, 2))
    care_R2 = np.where(style_R2 < careful, 1, np.where(style_R2 > 1 - sloppy, -1, 0)) * ~refusal_R2
    spoken_R2 = (language_R[:, None] + wrong_R2 * rng.integers(1, len(LANGUAGES), size=(R, 2))) % len(
        LANGUAGES
    )
    variant_R2 = rng.integers(0, 1_000, size=(R, 2))

    median, sigma, most = shape.answer
    task_R = rng.normal(size=(R, 1))  # some tasks ask for long answers of both
    noise_R2 = 0.7 * task_R + 0.714 * rng.normal(size=(R, 2))
    tokens_R2 = np.minimum(median * verbosity * np.exp(sigma * noise_R2), most)
    sentences_R2 = np.maximum(1, np.rint((tokens_R2 - ANSWER_TOKENS) / SENTENCE_TOKENS).astype(int))
    sentences_R2 = np.where(refusal_R2, 1, sentences_R2)
    median, sigma, most = shape.prompt
    tokens_R = np.minimum(median * np.exp(sigma * rng.normal(size=R)), most) * ~popular_R
    context_R = np.maximum(0, np.rint((tokens_R - QUESTION_TOKENS) / SENTENCE_TOKENS).astype(int))

    u_R2 = utility(care_R2, polite_R2, correct_R2, refusal_R2, wrong_R2, sentences_R2)
    prob_R = LAPSE / 2 + (1 - LAPSE) / (1 + np.exp(u_R2[:, 1] - u_R2[:, 0]))
    a_wins_R = rng.random(R) < prob_R
    words = iter(rng.integers(0, 2**15, size=int(sentences_R2.sum() + context_R.sum())).tolist())

    prompts, answers = [], ([], [])
    for row, (language, kind, asked, context) in enumerate(
        zip(language_R.tolist(), kind_R.tolist(), asked_R6.tolist(), context_R.tolist(), strict=True)
    ):
        prompts.append(prompt_text(LANGUAGES[language], KINDS[kind], asked, context, words))
        for side in (0, 1):
            answers[side].append(
                answer_text(
                    LANGUAGES[spoken_R2[row, side]], KINDS[kind], asked, bool(correct_R2[row, side]),
                    bool(polite_R2[row, side]), bool(refusal_R2[row, side]), int(care_R2[row, side]),
                    int(sentences_R2[row, side]), int(variant_R2[row, side]), words,
                )
            )  # fmt: skip
    first = block * BLOCK_ROWS
    return pa.table(
        [
            [f"arena-{seed}-{row}" for row in range(first, first + R)],
            prompts,
            answers[0],
            answers[1],
            [MODEL_A if a_wins else MODEL_B for a_wins in a_wins_R],
            [MODELS[model][0] for model in model_R2[:, 0]],
            [MODELS[model][0] for model in model_R2[:, 1]],
            [LANGUAGES[language].name for language in language_R],
            ["arena"] * R,
            prob_R,
        ],
        schema=ARENA_SCHEMA,
    )


def prompt_text(said: Language, kind: str, asked: list[int], context: int, words: Iterator[int]) -> str:
    """The prompt: `context` sentences, then a question of the given kind about the numbers in `asked`."""
    a, b, k, n, country, who = subject(asked)
    parts = [said.context[next(words) % len(said.context)] for _ in range(context)]
    match kind:
        case "capital":
            parts.append(said.ask_capital.format(country=said.capitals[country][0], n=n))
        case "sum":
            parts.append(said.ask_sum.format(a=a, b=b))
        case "fruits":
            parts.append(said.ask_fruits.format(k=k, n=n))
        case "animals":
            parts.append(said.ask_animals.format(k=k, n=n))
        case "code":
            parts.append(said.ask_code.format(a=a, b=b))
        case _:
            owner, other = said.names[who], said.names[(who + 1) % len(said.names)]
            parts.insert(len(parts) // 2, said.say_notes.format(name=owner, a=a))
            parts.append(said.say_notes.format(name=other, a=b))
            parts.append(said.ask_notes.format(name=owner))
    return said.space.join(parts)


def answer_text(
    said: Language,
    kind: str,
    asked: list[int],
    correct: bool,
    polite: bool,
    refusal: bool,
    care: int,
    sentences: int,
    variant: int,
    words: Iterator[int],
) -> str:
    """Polite words, the answer proper or a refusal, `sentences` about it, a check, polite words."""
    parts = [said.openers[variant % 2]] if polite else []
    parts.append(
        said.refusals[variant // 2 % 2] if refusal else core_text(said, kind, asked, correct, variant)
    )
    pool = (said.plain, said.careful, said.sloppy)[care]
    for number in range(sentences):
        word = next(words)
        # The first sentence shows the style, three in ten of the others do not.
        style = pool if number == 0 or word % 10 < 7 else said.plain
        parts.append(style[(word >> 5) % len(style)])
    if care > 0:
        parts.append(said.check)
    if polite:
        parts.append(said.closers[variant // 4 % 2])
    return said.space.join(parts).strip()


def core_text(said: Language, kind: str, asked: list[int], correct: bool, variant: int) -> str:
    """What was asked for, or something near it that is wrong."""
    a, b, k, _, country, who = subject(asked)
    match kind:
        case "capital":
            said_country, capital = said.capitals[country]
            if not correct:
                capital = said.capitals[(country + 1 + variant % 7) % len(said.capitals)][1]
            return said.say_capital.format(country=said_country, capital=capital)
        case "sum":
            return said.say_sum.format(a=a, b=b, c=a + b + (0 if correct else (1, 10, -2)[variant % 3]))
        case "fruits" | "animals":
            right, wrong = (said.fruits, said.animals) if kind == "fruits" else (said.animals, said.fruits)
            items = [right[(variant + item) % len(right)] for item in range(k)]
            if not correct:
                items[variant % k] = wrong[variant % len(wrong)]
            return "\n" + "".join(f"- {item}\n" for item in items)
        case "code":
            body = f"x * {a} + {b}" if correct else f"x + {a} * {b}"
            return f"{said.say_code}\n```python\ndef f(x):\n    return {body}\n```\n"
        case _:
            return said.say_notes.format(name=said.names[who], a=a if correct else b)


def subject(asked: list[int]) -> tuple[int, int, int, int, int, int]:
    """Two different numbers, a count of items, a number for show, a country and a person."""
    a = 11 + asked[0] % 89
    b = 11 + (a - 11 + 1 + asked[1] % 88) % 89
    return a, b, 2 + asked[2] % 3, 11 + asked[3] % 89, asked[4] % 8, asked[5] % 4


class Tally:
    """What run.json tells about the rows, gathered as they stream by."""

    def __init__(self) -> None:
        self.rows = 0
        self.sums = np.zeros(4)
        self.tokens = np.zeros(32_768, np.int64)
        self.languages: dict[str, int] = {}

    def add(self, table: pa.Table) -> pa.Table:
        """Count a table's rows, and hand it on."""
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
