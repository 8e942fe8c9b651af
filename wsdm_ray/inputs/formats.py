"""The published formats: each a function from a row in its published columns to one vote, and its columns.

Parquet, JSON lines and CSV hold the same values; in CSV, as in any column of strings, a list is its JSON
text. The columns of each format are

    wsdm           Kaggle "WSDM Cup - Multilingual Chatbot Arena", train.parquet (kaggle.com/competitions/
                   wsdm-cup-multilingual-chatbot-arena/data): id, prompt, response_a, response_b, winner,
                   model_a, model_b, language
    lmsys-57k      Kaggle "LMSYS - Chatbot Arena Human Preference Predictions", train.csv (kaggle.com/
                   competitions/lmsys-chatbot-arena/data; the same as huggingface.co/datasets/lmsys/
                   lmsys-arena-human-preference-55k): id, model_a, model_b, prompt, response_a, response_b
                   (lists of one text or null a turn), winner_model_a, winner_model_b, winner_tie (0 or 1)
    lmsys-33k      huggingface.co/datasets/lmsys/chatbot_arena_conversations: question_id, model_a, model_b,
                   winner (model_a, model_b, tie, tie (bothbad)), judge, conversation_a, conversation_b
                   (messages), turn, anony, language, tstamp, openai_moderation, toxic_chat_tag; also
                   lmarena-ai/arena-human-preference-100k, which has further columns
    arena-140k     huggingface.co/datasets/lmarena-ai/arena-human-preference-140k, and arena-expert-5k: id,
                   model_a, model_b, winner (model_a, model_b, tie, both_bad), evaluation_session_id,
                   evaluation_order, conversation_a, conversation_b (messages of parts), full_conversation,
                   conv_metadata, category_tag, language, is_code, timestamp
    ultrafeedback  huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized, the files *_prefs: prompt,
                   prompt_id, chosen, rejected, messages (messages each), score_chosen, score_rejected
    ultrafeedback-raw  huggingface.co/datasets/openbmb/UltraFeedback: source, instruction, models,
                   completions (objects with model, response, fine-grained_score, overall_score and others),
                   correct_answers, incorrect_answers
    orpo-dpo-mix   huggingface.co/datasets/mlabonne/orpo-dpo-mix-40k: source, chosen, rejected (messages
                   each), prompt, question
    hh-rlhf        huggingface.co/datasets/Anthropic/hh-rlhf: chosen, rejected, each a whole dialogue
                   written as \\n\\nHuman: ...\\n\\nAssistant: ...
    helpsteer2     huggingface.co/datasets/nvidia/HelpSteer2, the folder preference: prompt, response_1,
                   response_2, preference_strength (-3 to 3; below 0 response_1 is better) and others
    helpsteer3     huggingface.co/datasets/nvidia/HelpSteer3, the set preference: domain, language, context
                   (messages), response1, response2, overall_preference (-3 to 3), individual_preference
    dpo            preference rows as TRL takes them (huggingface.co/docs/trl/dataset_formats): prompt,
                   chosen, rejected, each a text or messages, with or without id; the messages of chosen and
                   rejected may begin with the prompt. Also rows of ShareGPT's shape (conversations, chosen,
                   rejected, and perhaps system), Skywork-Reward-Preference, allenai/reward-bench, and
                   allenai/reward-bench-2, whose chosen and rejected are lists of texts

The vote on an arena conversation (lmsys-57k, lmsys-33k, arena-140k) is on the whole: the prompt is all turns
of the user, with what the system says before them; a response is all turns of one model, with the tools that
it calls. In arena-140k that is the conversation since the last vote: `full_conversation`, which also has what
was said before it, is not passed on. The vote on a dialogue (the other formats) is on the last answer: the
prompt is all messages before it.

A row of several pairs becomes as many rows, with the ids ID-1, ID-2, ...: each chosen text with each rejected
one (dpo), and the best completion, the first of several, with each other one (ultrafeedback-raw). Completions
are compared by fine-grained_score, the mean of four ratings, and by overall_score where there is none.

A row has different prompts where the prompt's turns (lmsys-33k, arena-140k) or the messages before the last
answer differ between its two sides. Some rows of hh-rlhf are so (github.com/eric-mitchell/
direct-preference-optimization/pull/86). A dialogue of hh-rlhf that ends without an answer has an empty one.
Two equal scores (ultrafeedback, ultrafeedback-raw) and a strength of 0 (helpsteer2, helpsteer3) are a tie.

A row without a label has no winner. Not covered: how messages, parts and lists become one text (`messages`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wsdm_ray.inputs.chosen_rejected import (
    COUNT,
    SIDES,
    answer_pairs,
    completion_pairs,
    dialogue_vote,
    dpo_vote,
    hh_rlhf_vote,
    ultrafeedback_raw_vote,
    ultrafeedback_vote,
)
from wsdm_ray.inputs.side_by_side import (
    LABELS,
    NO_TEXTS,
    Row,
    Vote,
    arena_vote,
    helpsteer2_vote,
    helpsteer3_vote,
    lmsys_57k_vote,
    winner_of_labels,
    wsdm_vote,
)
from wsdm_ray.schema import TEXTS

__all__ = [
    "FORMATS",
    "LABELS",
    "NO_TEXTS",
    "PublishedFormat",
    "Vote",
    "formats_that_fit",
    "winner_of_labels",
]


@dataclass(frozen=True, kw_only=True)
class PublishedFormat:
    """The columns of a published data set, and how a row of it becomes a vote."""

    vote: Callable[[Row], Vote | None]
    """From a row with the columns `read` and `passed` to its vote; None where its sides' prompts differ. It
    raises `MalformedRowError`. The winner is None where the row has no label."""
    pairs: Callable[[Row], list[Row]] = lambda row: [row]
    """The rows of one pair each that a row is, for `vote`: itself, but where it has several pairs."""
    needed: tuple[str, ...]
    """Columns that a file must have, besides ids and labels."""
    labels: tuple[str, ...] = ()
    """Columns that a file with votes must have."""
    read: tuple[str, ...]
    """Columns that `vote` takes; they are not passed on."""
    passed: tuple[str, ...] = ()
    """Columns that `vote` takes, and that are passed on all the same."""
    repeats: tuple[str, ...] = ()
    """Columns that repeat what others hold; they are not passed on."""
    kept: tuple[str, ...] = ("language", "source")
    """Canonical columns that the file has under their own names."""
    id: str = "id"
    id_needed: bool = False
    """Whether a file without ids is an error. Else its rows get the ids NAME-ROW (`Reading`)."""
    id_of_prompt: bool = False
    """Whether several rows may have one id. The later ones get -1, -2, ... added to it."""
    chosen: bool = True
    """Whether `vote` gives the chosen response as response_a, so that the sides are still to be decided."""


def arena_format(id: str) -> PublishedFormat:
    """The format of an arena's conversations, whose ids are in the column `id`."""
    return PublishedFormat(
        vote=arena_vote,
        id=id,
        id_needed=True,
        needed=("conversation_a", "conversation_b"),
        labels=("winner",),
        read=("conversation_a", "conversation_b", "winner"),
        repeats=("full_conversation",),
        kept=("model_a", "model_b", "language", "source"),
        chosen=False,
    )


FORMATS = {
    "wsdm": PublishedFormat(
        vote=wsdm_vote,
        id_needed=True,
        needed=TEXTS,
        labels=("winner",),
        read=(*TEXTS, "winner"),
        kept=("model_a", "model_b", "language", "source"),
        chosen=False,
    ),
    "lmsys-57k": PublishedFormat(
        vote=lmsys_57k_vote,
        id_needed=True,
        needed=TEXTS,
        labels=LABELS,
        read=(*TEXTS, *LABELS),
        kept=("model_a", "model_b", "language", "source"),
        chosen=False,
    ),
    "lmsys-33k": arena_format("question_id"),
    "arena-140k": arena_format("id"),
    "ultrafeedback": PublishedFormat(
        vote=ultrafeedback_vote,
        id="prompt_id",
        id_needed=True,
        id_of_prompt=True,
        needed=SIDES,
        read=SIDES,
        passed=("score_chosen", "score_rejected"),
        repeats=("prompt", "messages"),
    ),
    "ultrafeedback-raw": PublishedFormat(
        vote=ultrafeedback_raw_vote,
        pairs=completion_pairs,
        needed=("instruction", "completions"),
        read=("instruction", "completions"),
        kept=("language",),
    ),
    "orpo-dpo-mix": PublishedFormat(
        vote=dialogue_vote, needed=SIDES, read=SIDES, repeats=("prompt",), kept=("language",)
    ),
    "hh-rlhf": PublishedFormat(vote=hh_rlhf_vote, needed=SIDES, read=SIDES),
    "helpsteer2": PublishedFormat(
        vote=helpsteer2_vote,
        needed=("prompt", "response_1", "response_2"),
        labels=("preference_strength",),
        read=("prompt", "response_1", "response_2"),
        passed=("preference_strength",),
        chosen=False,
    ),
    "helpsteer3": PublishedFormat(
        vote=helpsteer3_vote,
        needed=("context", "response1", "response2"),
        labels=("overall_preference",),
        read=("context", "response1", "response2"),
        passed=("overall_preference",),
        chosen=False,
    ),
    "dpo": PublishedFormat(
        vote=dpo_vote,
        pairs=answer_pairs,
        needed=SIDES,
        read=(*SIDES, "prompt", "conversations"),
        passed=("system", COUNT),
    ),
}
"""Formats by the names of `--format`."""


def formats_that_fit(names: Sequence[str]) -> str:
    """`; --format NAME fits these columns` for a file with the columns `names`; empty where none fits."""
    fitting = [
        name
        for name, form in FORMATS.items()
        if {*form.needed, *form.labels, *((form.id,) if form.id_needed else ())} <= set(names)
    ]
    return f"; --format {' or '.join(fitting)} fits these columns" if fitting else ""
