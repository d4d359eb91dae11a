"""Equations as MathML, which browsers draw without a script or a font from elsewhere."""

import html
import re

from latex2mathml.converter import convert


EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(page_html: str, **kwargs) -> str:
    def as_mathml(match: re.Match) -> str:
        tag, opening, tex = match.groups()
        drawn = convert(html.unescape(tex), display="inline" if opening == "(" else "block")
        return f'<{tag} class="equation">{drawn}</{tag}>'

    return EQUATION.sub(as_mathml, page_html)
