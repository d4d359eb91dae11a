"""Equations as MathML, which browsers draw without a script or a font from elsewhere; names that line breaks leave whole."""

import html
import re

from latex2mathml.converter import convert


EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
ARGUMENT = re.compile(r"(?<=[ >])(--\w+)(?=[ <\n])")
COMMANDS = re.compile(r'<code>--.*?</code>|<div class="language-bash.*?</pre>', re.DOTALL)
CELL = re.compile(r"<t[dh][ >].*?</t[dh]>", re.DOTALL)
CODE = re.compile(r"(?<=<code>)[^<]+")


def on_page_content(page_html: str, **kwargs) -> str:
    def as_mathml(match: re.Match) -> str:
        tag, opening, tex = match.groups()
        drawn = convert(html.unescape(tex), display="inline" if opening == "(" else "block")
        return f'<{tag} class="equation">{drawn}</{tag}>'

    def breakable(cell: re.Match) -> str:
        # Where a column is narrow, a long name may go on behind an underscore.
        return CODE.sub(lambda code: code[0].replace("_", "_<wbr>"), cell[0])

    def whole(command: re.Match) -> str:
        return ARGUMENT.sub(r'<span class="argument">\1</span>', command[0])

    return COMMANDS.sub(whole, CELL.sub(breakable, EQUATION.sub(as_mathml, page_html)))
