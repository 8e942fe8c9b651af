"""One self-contained HTML page from a template of this folder. Whatever comes from data is escaped by jinja2.

Not covered: what a page says (`report`, `curves`).
"""

from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

__all__ = ["MOST_SETTINGS", "decimals", "flatten", "percent", "render_page", "signed", "visible"]

MOST_SETTINGS = 80
"""A page lists at most so many settings of a run."""

# Controls, and marks that would reorder the text around them, become their names; UTF-8 has no surrogates.
CONTROLS = (*range(9), 11, 12, *range(14, 32), *range(0x7F, 0xA0))
REORDERING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
UNSAFE: dict[int, str] = {code: f"⟨U+{code:04X}⟩" for code in CONTROLS + REORDERING} | dict.fromkeys(
    range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}"
)


def render_page(name: str, **values: Any) -> str:
    """The page of a template of this folder; what comes from data is escaped."""
    environment = Environment(
        loader=FunctionLoader(template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent, "decimals": decimals, "signed": signed, "whole": whole, "visible": visible
    }  # fmt: skip
    return environment.get_template(name).render(style=Markup(template("page.css")), **values)


def template(name: str) -> str:
    return files("wsdm_ray.evaluation").joinpath(name).read_text("utf-8")


def visible(text: str) -> str:
    """`text` with control characters, lone surrogates and bidirectional overrides made visible."""
    return text.translate(UNSAFE)


def flatten(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Dotted names and short values of nested settings; a long list shows its first three."""
    if isinstance(value, dict) and value:
        return [
            pair for key, inner in value.items() for pair in flatten(inner, f"{name}.{key}" if name else key)
        ]
    if isinstance(value, list):
        more = f", … {len(value) - 3:,} more" if len(value) > 3 else ""
        value = ", ".join(str(one)[:120] for one in value[:3]) + more
    return [(name, str(value)[:300])]


def percent(value: float | None, places: int = 1) -> str:
    """A share in hundredths, or a dash."""
    return "–" if value is None else f"{value * 100:.{places}f}"


def decimals(value: float | None, places: int = 3) -> str:
    """With a real minus sign, or a dash."""
    return "–" if value is None else f"{value:.{places}f}".replace("-", "−")


def signed(value: float | None, places: int = 3) -> str:
    """With its sign, also where it is positive."""
    return "–" if value is None else f"{value:+.{places}f}".replace("-", "−")


def whole(value: float) -> str:
    return f"{value:,.0f}"
