"""What is shown to people holds no secret, and nothing that breaks a line or drives a terminal."""

import pytest

from wsdm_ray.plain_text import has_credentials, one_line, redact, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:SE/CRET@bucket/x: not found", "s3://***@bucket/x: not found"),
        ("https://x/y?X-Amz-Signature=SECRET&n=3", "https://x/y?X-Amz-Signature=***&n=3"),
        ("https://x/y?n=3&token=SECRET, tried twice", "https://x/y?n=3&token=***, tried twice"),
        ("https://x/y?X-Amz-Credential=SECRET%2F20&sig=SECRET", "https://x/y?X-Amz-Credential=***&sig=***"),
        ("{'Authorization': 'Bearer SECRETSECRET'}", "{'Authorization': 'Bearer ***'}"),
        ("a key=value, token: three tokens", "a key=value, token: three tokens"),
        ("hf://datasets/a/b@main/x.parquet", "hf://datasets/a/b@main/x.parquet"),
        ("s3://bucket/x?versionId=abc: a:b@c", "s3://bucket/x?versionId=abc: a:b@c"),
    ],
)
def test_credentials_in_urls_and_headers(text, shown):
    assert redact(text) == shown
    assert has_credentials(text) == ("***" in shown and "://" in text)


@pytest.mark.parametrize(
    ("variable", "value", "hidden"),
    [
        ("AWS_SECRET_ACCESS_KEY", "planted+secret/1", True),
        ("AWS_SESSION_TOKEN", "planted+secret/1", True),
        ("HF_TOKEN", "planted+secret/1", True),
        ("WANDB_API_KEY", "planted+secret/1", True),
        ("RAY_AUTH_TOKEN", "planted+secret/1", True),
        ("DB_PASSWORD", "planted+secret/1", True),
        ("AWS_SECRET_ACCESS_KEY", "/planted+secret/1", True),
        ("SOME_SECRET", "/etc/passwd", False),
        ("FSSPEC_GS_TOKEN", "anon", False),
        ("RAY_AUTH_TOKEN_PATH", "token-file-of-ray", False),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/etc/key.json", False),
        ("TOKENIZERS_PARALLELISM", "a-long-word", False),
        ("MONKEY", "a-long-word", False),
    ],
)
def test_values_of_secret_variables(monkeypatch, variable, value, hidden):
    monkeypatch.setenv(variable, value)
    assert redact(f"refused: {value}!") == ("refused: ***!" if hidden else f"refused: {value}!")


def test_of_two_secrets_of_which_one_holds_the_other_nothing_is_left(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "12345678")
    monkeypatch.setenv("API_KEY", "12345678abc")
    assert redact("x 12345678abc 12345678") == "x *** ***"


def test_one_line():
    assert one_line(" a\nb\r\n\tc\x00\x1b[31m\x9b ") == "a b c\\x00\\x1b[31m\\x9b"
    assert visible("a\tb\nc\r") == "a\tb\nc\r"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text", ["x" * 200_000, "://" * 60_000, "?a-" * 60_000, "://a:" * 40_000, "Bearer " * 30_000]
)
def test_a_long_text_takes_time_in_proportion_and_is_cut(text):
    line = one_line(text)
    assert len(line) < 4_100
    assert line.endswith(" more characters)")
