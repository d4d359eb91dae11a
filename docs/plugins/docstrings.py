"""Docstrings in transformers' form, put into the form that mkdocstrings' google style reads."""

import re
from collections.abc import Callable

from griffe import ExprCall, Extension, GriffeLoader, Module, Object


ITEM = re.compile(r"^(?P<head> +\*{0,2}\w+(?:, \w+)*) \((?P<told>.*)\):$", re.MULTILINE)
RETURNED = re.compile(r"^(?P<head>Returns:\n +)(?P<told>\[?`[^:\n]*?)(?::(?P<text>.*))?$", re.MULTILINE)
RAISES = re.compile(r"^Raises:\n((?: +.*\n?)+)", re.MULTILINE)
RAISED = re.compile(r"^( +)(?:\[?`(\w+)`\]?(?=: )|(?=[^ ]))", re.MULTILINE)
REFERENCE = re.compile(r"\[`~?([\w.]+)`\]")
SHAPE = re.compile(r"of shape (`\(.*?\)`)")


def read(told: str) -> tuple[str, str]:
    """`` `torch.Tensor` of shape `(batch, dim)` or `float`, *optional* `` as the type and the beginning of the text."""
    names = " | ".join(re.findall(r"`~?([^`]+)`", SHAPE.sub("", told.partition(", *optional")[0])))
    shape = SHAPE.search(told)
    return re.sub(r"^tuple\((.*)\)$", r"tuple[\1]", names), f" Of shape {shape[1]}." if shape else ""


def in_google_style(text: str, link: Callable[[re.Match], str]) -> str:
    def item(match: re.Match) -> str:
        kind, shape = read(match["told"])
        return f"{match['head']}{f' ({kind})' if kind else ''}:{shape}"

    def returned(match: re.Match) -> str:
        (kind, shape), text = read(match["told"]), match["text"]
        if text is None:  # a type alone, or a sentence that begins with it
            kind, text = kind.partition(" | ")[0], "" if match["told"].endswith("`]") else match["told"]
        return f"{match['head']}{kind}:{shape} {text.strip()}".rstrip()

    text = ITEM.sub(item, RETURNED.sub(returned, text))
    # The second line of a cause is indented further than the first one.
    text = RAISES.sub(lambda part: RAISED.sub(lambda line: f"{line[1]}{line[2] or '    '}", part[0]), text)
    return REFERENCE.sub(link, text)


class TransformersDocstrings(Extension):
    """Types go where the parser looks for them; names of the package become links to this site, others code."""

    def on_package(self, *, pkg: Module, loader: GriffeLoader, **kwargs) -> None:
        def link(match: re.Match) -> str:
            name = match[1].rpartition(".")[2]
            return f"[`{name}`][{pkg.name}.{name}]" if name in (pkg.exports or ()) else f"`{name}`"

        def rewrite(part: Object) -> None:
            if part.docstring is not None:
                part.docstring.value = in_google_style(part.docstring.value, link)
            if part.is_attribute and isinstance(part.value, ExprCall) and str(part.value.function) == "HfArg":
                part.value = next((told.value for told in part.value.arguments if told.name == "default"), part.value)
            for member in part.members.values():
                if not member.is_alias:
                    rewrite(member)

        rewrite(pkg)
