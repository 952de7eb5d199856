"""The look of a page: on light and dark screens of any width, and on paper."""

from __future__ import annotations

from mla_export.charts import colours
from mla_export.charts.svg import FONTS

# name -> on light paper, on dark paper
PAGE = {
    "ground": (colours.ROLES["paper"]),
    "ink": (colours.ROLES["ink"]),
    "line": (colours.ROLES["faint"]),
    "soft": ("#59636e", "#9198a1"),
    "raised": ("#f6f8fa", "#151b23"),
    "pass": ("#0f6b38", "#4ac26b"),
    "ambiguous": ("#7a5200", "#e3b341"),
    "fail": ("#b3261e", "#ff8f85"),
}


def css() -> str:
    """Give the whole style of a page, its charts' colours included."""
    light, dark = ("".join(f"--{name}:{papers[i]};" for name, papers in PAGE.items()) for i in range(2))
    return (
        f":root{{color-scheme:light dark;{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        f"body{{font-family:{FONTS}}}{' '.join(RULES.split())}{colours.css()}"
    )


RULES = """
body { margin: 0; background: var(--ground); color: var(--ink); font-size: 15px; line-height: 1.5 }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 3rem }
h1 { font-size: 1.4rem; margin: 0 0 1rem; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line);
  overflow-wrap: anywhere }
h3 { font-size: 1rem; margin: 1rem 0 .25rem; overflow-wrap: anywhere }
pre { font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; background: var(--raised);
  padding: .5rem .75rem }
p { margin: .5rem 0; max-width: 75ch; overflow-wrap: anywhere }
.verdict { border: 1px solid var(--line); border-left: .5rem solid var(--soft); border-radius: .3rem;
  background: var(--raised); padding: .75rem 1rem; margin-bottom: 1rem }
.verdict.pass { border-left-color: var(--pass) }
.verdict.ambiguous { border-left-color: var(--ambiguous) }
.verdict.fail { border-left-color: var(--fail) }
.verdict strong { display: block; font-size: 1.25rem }
.verdict.pass strong, .badge.pass { color: var(--pass) }
.verdict.ambiguous strong, .badge.ambiguous { color: var(--ambiguous) }
.verdict.fail strong, .badge.fail { color: var(--fail) }
.badge { font-weight: 600; white-space: nowrap }
.badge.reference, .badge.absent, .badge.skipped { color: var(--soft); font-weight: 400 }
.missing { color: var(--soft); border: 1px dashed var(--line); border-radius: .3rem; padding: .5rem .75rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; margin: .75rem 0; font-size: .87rem; font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem }
th, td { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-weight: 600; color: var(--soft); vertical-align: bottom }
.number { text-align: right; white-space: nowrap }
.text { text-align: left; overflow-wrap: anywhere; min-width: 8rem }
figure { margin: 1rem 0 }
figcaption, .note, footer { color: var(--soft); font-size: .87rem; max-width: 75ch }
.mla-chart { display: block; width: 100%; min-width: 30rem; max-width: 43.2rem; height: auto }
footer { margin-top: 2.5rem; padding-top: 1rem; border-top: 1px solid var(--line) }
@media print {
  :root { color-scheme: light }
  body { font-size: 10pt }
  main { max-width: none; padding: 0 }
  h2 { break-after: avoid }
  figure, table, tr, p, .verdict { break-inside: avoid }
  thead { display: table-header-group }
  .scroll { overflow: visible }
  .mla-chart { min-width: 0 }
}
@page { margin: 15mm }
"""
