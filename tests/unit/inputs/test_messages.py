"""Messages, parts and lists, in every shape that sets have, to texts written out here."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.inputs.published_rows import parts
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.cells import MOST_PYTHON_CHARACTERS, MalformedRowError
from wsdm_ray.inputs.messages import (
    count_media,
    dialogue_text,
    holds_messages,
    looks_like_lists,
    required_messages,
    required_turns,
    text_of,
)

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CALL_TEXT = '{"function": {"arguments": "{\\"a\\": 1}", "name": "add"}, "id": "c1", "type": "function"}'


def said(value) -> list[tuple]:
    """Roles and contents of the messages of a cell."""
    return [tuple(message) for message in required_messages(value, "x") or []]


@pytest.mark.parametrize(
    ("message", "role", "content"),
    [
        ({"role": "tool", "content": "42"}, "tool", "42"),
        ({"role": "developer", "content": "Be brief."}, "developer", "Be brief."),
        ({"role": "function", "content": "42", "name": "add"}, "function", "42"),
        ({"role": "ipython", "content": "42"}, "ipython", "42"),
        ({"role": "Critic", "content": "no"}, "Critic", "no"),
        ({"role": " User ", "content": "Hi"}, "user", "Hi"),
        ({"role": "human", "content": "Hi"}, "user", "Hi"),
        ({"role": "prompter", "content": "Hi"}, "user", "Hi"),
        ({"role": "model", "content": "Hi"}, "assistant", "Hi"),
        ({"from": "Bard", "value": "Hi"}, "assistant", "Hi"),
        ({"from": "human", "value": "Hi"}, "user", "Hi"),
        ({"from": "gpt", "value": "Yo"}, "assistant", "Yo"),
        ({"from": "system", "value": "S"}, "system", "S"),
        ({"from": "function_call", "value": "{}"}, "function_call", "{}"),
        ({"from": "observation", "value": "42"}, "observation", "42"),
        ({"role": None, "content": None, "from": "human", "value": "Hi"}, "user", "Hi"),
        ({"role": "assistant", "content": None}, "assistant", None),
    ],
)
def test_roles_and_keys(message, role, content):
    for value in ([message], message, json.dumps([message]), json.dumps(message), str([message])):
        assert said(value) == [(role, content)]
        assert holds_messages(value) == (not isinstance(value, str) or role not in ("ipython", "Critic"))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "Hi"}], "Hi"),
        ([{"type": "text", "text": "Hi", "image": None, "mimeType": None}], "Hi"),
        ([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "one\ntwo"),
        (["one", "two"], "one\ntwo"),
        ({"type": "text", "text": "Hi"}, "Hi"),
        ([{"type": "input_text", "text": "Hi"}], "Hi"),
        (
            [
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                {"type": "text", "text": "What?"},
            ],
            "[image]\nWhat?",
        ),
        (
            [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which?"}],
            "[image]\n[image]\nWhich?",
        ),
        ([{"type": "text", "text": "", "image": "https://x/y.png", "mimeType": "image/png"}], "[image]"),
        ([{"type": "input_audio", "input_audio": {"data": "AAAA"}}], "[audio]"),
        ([{"type": "video_url", "video_url": {"url": "x"}}, {"type": "file", "file": {}}], "[video]\n[file]"),
        ([{"type": "text", "text": ""}, {"type": "text", "text": "a"}], "a"),
        ([{"type": "text", "text": ""}], ""),
        ([{"type": "text", "text": None}], None),
        ([], None),
        (
            [
                {"type": "text", "text": "See:"},
                {"type": "tool_use", "name": "add", "input": {"a": 1, "b": None}},
            ],
            'See:\n{"input": {"a": 1}, "name": "add", "type": "tool_use"}',
        ),
    ],
)
def test_content_in_parts(content, text):
    for value in ([{"role": "user", "content": content}], json.dumps([{"role": "user", "content": content}])):
        assert said(value) == [("user", text)]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None, "tool_calls": [CALL]}, f"[{CALL_TEXT}]"),
        ({"tool_calls": [CALL]}, f"[{CALL_TEXT}]"),
        ({"content": "", "tool_calls": [{**CALL, "index": None}]}, f"[{CALL_TEXT}]"),
        ({"content": "Let me see.", "tool_calls": [CALL]}, f"Let me see.\n[{CALL_TEXT}]"),
        (
            {"content": None, "function_call": {"name": "é", "arguments": "{}"}},
            '{"arguments": "{}", "name": "é"}',
        ),
        ({"content": None, "tool_calls": "[add(1)]"}, "[add(1)]"),
        ({"content": "No tools.", "tool_calls": None}, "No tools."),
        ({"content": "No tools.", "tool_calls": []}, "No tools."),
    ],
)
def test_calls_of_tools(message, text):
    assert said([{"role": "assistant", **message}]) == [("assistant", text)]


def test_a_call_is_the_same_text_whatever_the_order_of_its_keys():
    other = {"type": "function", "function": {"arguments": '{"a": 1}', "name": "add"}, "id": "c1"}
    assert said([{"role": "assistant", "tool_calls": [other]}]) == [("assistant", f"[{CALL_TEXT}]")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            [{"role": "user", "content": 5}],
            r"x has the message .*5.*; its content must be text, or a list of par",
        ),
        ([{"role": "user", "content": [5]}], r"its content must be text, or a list of parts"),
        ([{"role": 5, "content": "a"}], r"x has the message .*without a role"),
        ([{"role": None, "content": "a"}], r"without a role"),
        ("Hi", r"x is 'Hi', but a list of messages with role and content is needed \(JSON in CSV\)$"),
        ("[]", r"but a list of messages"),
        (["Hi"], r"but a list of messages"),
        ([{"role": "user"}], r"but a list of messages"),
        (
            "[{'content': 'a', 'role': 'user'}\n {'content': 'b', 'role': 'assistant'}]",
            r"\(JSON in CSV\); it is a numpy array as text: write parquet, or JSON of lists",
        ),
        ("[{'content': array(['a'], dtype=object), 'role': 'user'}]", r"it is a numpy array as text"),
    ],
)
def test_what_is_no_list_of_messages(value, message):
    with pytest.raises(DataError, match=message) as caught:
        required_messages(value, "x")
    assert isinstance(caught.value, MalformedRowError)
    assert caught.value.reason != "malformed"
    assert "\n" not in str(caught.value)


def test_a_dialogue_shows_every_role():
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "6 x 7?"}]},
        {"role": "assistant", "content": None, "function_call": {"name": "mul"}},
        {"role": "tool", "content": "42"},
    ]
    assert dialogue_text(required_messages(messages, "x") or []) == (
        'developer: Be brief.\n\nuser: 6 x 7?\n\nassistant: {"name": "mul"}\n\ntool: 42'
    )


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ('["a", null]', ["a", None]),
        ('["a", NaN]', ["a", None]),
        ("['a', None]", ["a", None]),
        ("['a', nan]", ["a", None]),
        ("""["it's", 'a "b"', 'c\\n\\'d\\'']""", ["it's", 'a "b"', "c\n'd'"]),
        ("['\\ud83d\\ude00 \\ud800 \\xe9']", ["😀 \ufffd é"]),
        ("[]", []),
        ("  ['a']\n", ["a"]),
    ],
)
def test_turns_as_json_and_as_python_shows_them(text, turns):
    assert required_turns(text, "x") == turns


@given(st.lists(st.none() | st.text(st.characters(exclude_categories=("Cs",)))))
def test_what_python_shows_is_read_as_it_was(turns):
    assert required_turns(str(turns), "x") == turns
    assert required_turns(json.dumps(turns), "x") == turns


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("['a' 'b']", "; it is a numpy array as text: write parquet, or JSON of lists"),
        ("['a'\n 'b']", "; it is a numpy array as text"),
        ("""['a' "b's"]""", "; it is a numpy array as text"),
        ("['a' None]", "; it is a numpy array as text"),
        ("[nan 'a']", "; it is a numpy array as text"),
        (
            f"['{'a' * MOST_PYTHON_CHARACTERS}']",
            "; a Python list of more than 1,000,000 characters is not read",
        ),
        ("[__import__('os').getcwd()]", ""),
        ("['a'] + ['b']", ""),
        ("['a', 5]", ""),
        ("['a', b'b']", ""),
        ("{'a', 'b'}", ""),
        ("'a'", ""),
        ("['a'", ""),
        ("['\x00']", ""),
        ("[" * 100_000, ""),
        ("[" + "-" * 100_000 + "1]", ""),
        ("[" + "1+" * 100_000 + "1]", ""),
        (["a", 5], ""),
        (5, ""),
    ],
)
def test_what_is_no_list_of_turns(value, hint):
    with pytest.raises(MalformedRowError) as caught:
        required_turns(value, "x")
    assert f"but a list of texts is needed, one a turn (JSON in CSV){hint}" in str(caught.value)
    assert str(caught.value).endswith("(JSON in CSV)") == (not hint)
    assert len(str(caught.value)) < 300
    assert caught.value.reason == "not a list of texts"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("", ""),
        ("Hi", "Hi"),
        ("[1] is a footnote", "[1] is a footnote"),
        ("[1, 2]", "[1, 2]"),
        ('{"a": 1}', '{"a": 1}'),
        (["Hi"], "Hi"),
        ('["Hi"]', "Hi"),
        ("['Hi']", "Hi"),
        ("[null]", None),
        ([None], None),
        ([], None),
        ('["a", null, "c"]', "[turn 1]\na\n\n[turn 2]\n\n\n[turn 3]\nc"),
        (["a", "b"], "[turn 1]\na\n\n[turn 2]\nb"),
        ([{"role": "user", "content": "Hi"}], "Hi"),
        ([{"role": "assistant", "content": "Yo"}], "Yo"),
        ({"from": "gpt", "value": "Yo"}, "Yo"),
        ('[{"from": "system", "value": "S"}, {"from": "human", "value": "Hi"}]', "system: S\n\nuser: Hi"),
        ([parts("user", "a", "b")], "a\nb"),
    ],
)
def test_the_text_of_a_value(value, text):
    assert text_of(value) == text


@pytest.mark.parametrize("value", ["['a' 'b']", ["a", 5], 5, [["a"]], {"a": "b"}])
def test_what_is_no_text(value):
    with pytest.raises(
        MalformedRowError, match=r"^prompt is .*, but text, or a list of texts or messages, is"
    ):
        text_of(value, "prompt")


@pytest.mark.parametrize(
    ("texts", "is_lists"),
    [
        (['["a"]', None, "", '["b", null]'], True),
        (["['a']", '["b"]'], True),
        (['[{"role": "user", "content": "a"}]'], True),
        (["['a' 'b']"], True),
        (['["a"]', "a"], False),
        (['["a"]', "[1]"], False),
        (["[1] is a footnote"], False),
        (['{"role": "user", "content": "a"}'], False),
        ([None, ""], False),
        ([], False),
    ],
)
def test_columns_of_lists(texts, is_lists):
    assert looks_like_lists(texts) == is_lists


def test_media_are_counted():
    image = {"type": "image_url", "image_url": {"url": "u"}}
    text = {"type": "text", "text": "a file of images"}
    messages = [
        {"role": "user", "content": [text, image, image, {"type": "input_audio", "input_audio": {}}]},
        {"role": "assistant", "content": "an [image]"},
    ]
    counts: Counter[str] = Counter()
    for value in (messages, json.dumps(messages)):
        count_media(value, counts)
    assert counts == {"image": 4, "audio": 2}
    for nothing in (None, "an image", '["an image"]', [text], "[", 5, ["image"]):
        count_media(nothing, counts)
    assert counts.total() == 6
