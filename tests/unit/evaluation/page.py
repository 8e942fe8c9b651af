"""A written report, read back."""

from html.parser import HTMLParser
from pathlib import Path

from wsdm_ray.config import EvaluateConfig


class Page(HTMLParser):
    """The tags of a page, the attributes that load something, and whether tags are balanced."""

    VOID = frozenset({"meta"})

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loads: list[tuple[str, str | None]] = []
        self.headings: list[int] = []
        self.drawings: list[dict[str, str | None]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [
            pair for pair in attrs if pair[0] in {"src", "href", "xlink:href", "action", "srcset", "data"}
        ]
        self.loads += [pair for pair in attrs if pair[0].startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in {"h1", "h2", "h3", "h4"}:
            self.headings.append(int(tag[1]))
        if tag == "svg":
            self.drawings.append(dict(attrs))

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(config: EvaluateConfig) -> tuple[str, Page]:
    text = Path(config.output, "report.html").read_text()
    page = Page(text)
    assert not page.open
    return text, page
