"""The tag `{% generation %}` of chat templates, which marks what the model said: shown as it stands.

It lies apart because it can only be defined where jinja2 is installed.
"""

from __future__ import annotations

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser


class Generation(Extension):
    """Render the body. transformers notes its place too, for masks in training; nothing here trains."""

    tags = {"generation"}  # noqa: RUF012 - declared a set of each instance by jinja2

    def parse(self, parser: Parser) -> nodes.Node:
        """Take everything up to `{% endgeneration %}`; names set inside do not leave it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)
