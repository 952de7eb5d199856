"""HTML as a value of its own: a plain `str` that comes into a page is text, and escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from mla_export.charts import Chart
from mla_export.charts.canvas import UNPRINTABLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
VERDICTS = {"fail": "FAILED", "ambiguous": "AMBIGUOUS", "pass": "passed"}


class Html(str):
    """Markup, made here. What is no `Html` is text."""

    __slots__ = ()


def markup(content: str) -> Html:
    """Give text as HTML: none of its characters is markup, and none of them unseen."""
    if isinstance(content, Html):
        return content
    return Html(escape(UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", content)))


def element(tag: str, *content: str, **attributes: str) -> Html:
    """Give an element; `class_` loses its underscore, and `aria_label` becomes `aria-label`."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{markup(value)}"' for key, value in attributes.items()
    )
    return Html(f"<{tag}{given}>{''.join(map(markup, content))}</{tag}>")


def missing(words: str) -> Html:
    """Say what is not here, and why, in the place where it would be."""
    return element("p", words, class_="missing")


def badge(verdict: str) -> Html:
    """Give a verdict as a coloured word; the word alone says it too."""
    return element("span", VERDICTS.get(verdict, verdict), class_=f"badge {verdict}")


def table(
    caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, texts: Sequence[int] = (0,)
) -> Html:
    """Give a table that scrolls sideways where the page is narrow.

    Columns are numbers, to the right, but for those in `texts`.
    """
    sides = ["text" if i in texts else "number" for i in range(len(header))]
    head = [element("th", name, scope="col", class_=side) for name, side in zip(header, sides, strict=True)]
    body = [
        element("tr", *(element("td", cell, class_=side) for cell, side in zip(row, sides, strict=True)))
        for row in rows
    ]
    made = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head)),
        element("tbody", *body),
    )
    return element("div", made, class_="scroll", role="region", aria_label=caption, tabindex="0")


def figure(chart: Chart, words: str = "") -> Html:
    """Give a chart, and what there is to say of it."""
    drawn = element("div", Html(chart.inline()), class_="scroll")
    return element("figure", drawn, *([element("figcaption", words)] if words else []))


def section(title: str, *content: Html) -> Html:
    """Give a part of the page under its heading."""
    return element("section", element("h2", title), *content)


def document(title: str, style: str, *content: Html) -> str:
    """Give a whole page that may fetch nothing and run nothing."""
    head = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{markup(title)}</title><style>{style}</style>"
    )
    body = "\n".join(map(markup, content))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'
    )
