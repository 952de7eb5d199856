"""The colours of charts by what they mean, on light and on dark paper, and the CSS that gives them.

A chart is drawn in marks: colours that nobody sees, one a role. `svg.py` puts the role's class in their
place. The series' colours are Okabe and Ito's (Color Universal Design, 2008), darkened or lightened until
each stands out from its paper.
"""

from __future__ import annotations

from collections.abc import Iterator

# role -> on light paper, on dark paper
ROLES = {
    "ink": ("#1f2328", "#e6edf3"),
    "faint": ("#d0d7de", "#3d444d"),
    "limit": ("#b3261e", "#ff8f85"),
    "paper": ("#ffffff", "#0d1117"),
    "s0": ("#0072b2", "#56b4e9"),
    "s1": ("#c75100", "#ff9a56"),
    "s2": ("#00805c", "#3fd0a4"),
    "s3": ("#a8487f", "#eba0cc"),
    "s4": ("#946200", "#f0c14b"),
    "s5": ("#5a4fcf", "#b3acff"),
    "s6": ("#5f6770", "#aeb6bf"),
}
SERIES = tuple(role for role in ROLES if role[1:].isdigit())
MARKS = {role: f"#00000{number:x}" for number, role in enumerate(ROLES, 1)}
ROLE_OF = {mark: role for role, mark in MARKS.items()}


def css() -> str:
    """Give the rules that colour the charts of a page; printed pages are light."""
    light = "".join(_rules(0))
    dark = "".join(_rules(1))
    return f"{light}@media screen and (prefers-color-scheme:dark){{{dark}}}"


def _rules(paper: int) -> Iterator[str]:
    for role, colours in ROLES.items():
        yield f".mla-{role}{{color:{colours[paper]}}}"
