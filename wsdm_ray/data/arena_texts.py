"""Prompts and answers of the arena, put together from the phrases of a language.

`words` are random numbers, one a sentence; `asked` are the six numbers that decide what is asked.
Not covered: how they are drawn (`arena`).
"""

from collections.abc import Iterator
from typing import NamedTuple

from wsdm_ray.data.arena_phrases import Language

__all__ = ["Answer", "answer_text", "prompt_text"]


class Answer(NamedTuple):
    """What an answer is like."""

    correct: bool
    polite: bool
    refusal: bool
    care: int
    sentences: int
    variant: int


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


def answer_text(said: Language, kind: str, asked: list[int], answer: Answer, words: Iterator[int]) -> str:
    """Polite words, the answer proper or a refusal, sentences about it, a check, polite words."""
    parts = [said.openers[answer.variant % 2]] if answer.polite else []
    parts.append(
        said.refusals[answer.variant // 2 % 2]
        if answer.refusal
        else core_text(said, kind, asked, answer.correct, answer.variant)
    )
    pool = (said.plain, said.careful, said.sloppy)[answer.care]
    for number in range(answer.sentences):
        word = next(words)
        # The first sentence shows the style, three in ten of the others do not.
        style = pool if number == 0 or word % 10 < 7 else said.plain
        parts.append(style[(word >> 5) % len(style)])
    if answer.care > 0:
        parts.append(said.check)
    if answer.polite:
        parts.append(said.closers[answer.variant // 4 % 2])
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
