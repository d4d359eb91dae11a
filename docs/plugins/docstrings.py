"""Docstrings in transformers' form, put into the form that mkdocstrings' google style reads."""

import re
from collections.abc import Callable

from griffe import Extension, GriffeLoader, Module, Object


ITEM = re.compile(r"^(?P<head> +\*{0,2}\w+(?:, \w+)*) \((?P<told>.*)\):$", re.MULTILINE)
RETURNED = re.compile(r"^(?P<head>Returns:\n +)(?P<told>\[?`[^:\n]*?)(?::(?P<text>.*))?$", re.MULTILINE)
RAISES = re.compile(r"^Raises:\n((?: +.*\n?)+)", re.MULTILINE)
RAISED = re.compile(r"^( +)(?:\[?`(\w+)`\]?(?=: )|(?=[^ ]))", re.MULTILINE)
REFERENCE = re.compile(r"\[`~?([\w.]+)`\]")
SHAPE = re.compile(r"of shape (`\(.*?\)`)")


def types(told: str) -> str:
    """`` `torch.Tensor` of shape `(batch, dim)` or `float`, *optional* `` as `torch.Tensor | float`."""
    names = re.findall(r"`~?([^`]+)`", SHAPE.sub("", told.partition(", *optional")[0]))
    return re.sub(r"^tuple\((.*)\)$", r"tuple[\1]", " | ".join(names))


def shape(told: str) -> str:
    found = SHAPE.search(told)
    return f" Of shape {found[1]}." if found else ""


def in_google_style(text: str, link: Callable[[re.Match], str]) -> str:
    def item(match: re.Match) -> str:
        kind = types(match["told"])
        return f"{match['head']}{f' ({kind})' if kind else ''}:{shape(match['told'])}"

    def returned(match: re.Match) -> str:
        kind, told = types(match["told"]), match["text"]
        if told is None:  # a type alone, or a sentence that begins with it
            kind, told = kind.partition(" | ")[0], "" if match["told"].endswith("`]") else match["told"]
        return f"{match['head']}{kind}:{shape(match['told'])} {told.strip()}".rstrip()

    def raised(match: re.Match) -> str:
        # The second line of a cause is indented like the first one.
        return RAISED.sub(lambda line: f"{line[1]}{line[2] or '    '}", match[0])

    return REFERENCE.sub(link, RAISES.sub(raised, ITEM.sub(item, RETURNED.sub(returned, text))))


class TransformersDocstrings(Extension):
    """Types go where the parser looks for them; names of the package become links to this site, others code."""

    def on_package(self, *, pkg: Module, loader: GriffeLoader, **kwargs) -> None:
        def link(match: re.Match) -> str:
            name = match[1].rpartition(".")[2]
            return f"[`{name}`][{pkg.name}.{name}]" if name in (pkg.exports or ()) else f"`{name}`"

        def rewrite(part: Object) -> None:
            if part.docstring is not None:
                part.docstring.value = in_google_style(part.docstring.value, link)
            for member in part.members.values():
                if not member.is_alias:
                    rewrite(member)

        rewrite(pkg)
