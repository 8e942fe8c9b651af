"""report.html of hostile rows: no script runs in a browser, also if the page's own policy were not there."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.evaluation.page import page_of
from wsdm_ray.evaluation.evaluate import evaluate

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

RUNS = "document.title=&quot;ran&quot;+(40+2)".replace("&quot;", "'")
HOSTILE = (
    f"<script>{RUNS}</script>",
    f"</script><script>{RUNS}</script>",
    f"</style></svg></title></bdi></td><script>{RUNS}</script>",
    f'"><img src=x onerror="{RUNS}">',
    f"' autofocus onfocus={RUNS} x='",
    f"<svg/onload={RUNS}>",
    f"<details open ontoggle={RUNS}>",
    f"javascript:{RUNS}",
    f"<iframe srcdoc='<script>parent.{RUNS}</script>'>",
    "<meta http-equiv=refresh content='0;url=https://example.com'><base href=https://example.com>",
)
POLICY = re.compile(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>")


@pytest.fixture
def hostile(on_disk, predictions, votes):
    """A report of two sets whose ids, texts, languages, sources, models and settings want to run."""

    def texts(name: str) -> list[str]:
        return [f"{HOSTILE[row % len(HOSTILE)]} {name} {row // 20}" for row in range(60)]

    ids = [f"{text} {row}" for row, text in enumerate(texts("id"))]
    changed = {name: texts(name) for name in ("prompt", "response_a", "response_b", "language", "source")}
    changed |= {"id": ids, "model_a": texts("m")[::-1], "model_b": texts("m")}
    errors = {
        "error": [f"{HOSTILE[0]} (of row 0)", *[None] * 59],
        "prob_a": [None, *predictions["prob_a"][1:]],
    }
    config = on_disk(predictions | errors | {"id": ids}, votes | changed)
    settings = {text: text for text in HOSTILE}
    Path(config.predictions[0], "run.json").write_text(json.dumps({"config": settings, "models": [settings]}))
    evaluate(config)
    return config


def test_no_tag_or_attribute_comes_of_the_data(hostile):
    text, page = page_of(hostile)
    assert not {"script", "img", "iframe", "object", "link", "base", "embed", "form"} & set(page.tags)
    assert not page.loads
    assert text.count("<meta") == 3, "encoding, width, policy"
    assert POLICY.search(text)
    for each in ("&lt;script&gt;", "&lt;svg/onload", "&lt;details open", "&lt;iframe"):
        assert each in text


@pytest.mark.skipif(
    BROWSER is None,
    reason="needs Chromium, which pip cannot install (apt can); the test above parses the same pages",
)
def test_nothing_runs_in_a_browser(hostile, tmp_path):
    """The page is opened without its policy; a script of the test's own shows that scripts do run."""
    text, without = Path(hostile.output, "report.html").read_text(), tmp_path / "page.html"
    own = "<script>document.body.id = 'own' + (1 + 1)</script>"
    without.write_text(POLICY.sub("", text).replace("</body>", f"{own}</body>"))
    assert BROWSER
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        f"--user-data-dir={tmp_path}/profile",
    )
    shown = subprocess.run(
        [BROWSER, *flags, "--dump-dom", without.as_uri()],
        capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip
    assert '<body id="own2">' in shown
    title = re.search(r"<title>(.*?)</title>", shown)
    assert title
    assert title[1].startswith("Predictions against votes")
