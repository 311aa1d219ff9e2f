"""Markdown of reports: what comes from records and findings stays text in it, and never becomes markup."""

import re
from collections.abc import Sequence
from urllib.parse import quote

from tabulate import tabulate

# Where CommonMark begins a tag, a comment or an automatic link; any other `<` is itself.
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
# What makes a heading, a quotation, a list or a block of code of a paragraph that begins with it.
_BLOCK = re.compile(r"#{1,6}(?=\s)|>|~~~|[-+*](?=\s)|\d+[.)](?=\s)")


class Markup(str):
    """Markdown on purpose: a cell that `markdown_table` takes as it is."""

    __slots__ = ()


def escape(text: str) -> str:
    """Text as one line that begins no tag, comment, code, link, picture or column.

    By character references, which are never markup; a text without any of these stays the same.
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return remove_tags(text).replace("`", "&#96;").replace("|", "&#124;").replace("](", "]&#40;")


def paragraph(text: str) -> str:
    """Markdown as a paragraph, whatever it begins with."""
    return f"&#{ord(text[0])};{text[1:]}" if _BLOCK.match(text) else text


def remove_tags(page: str) -> str:
    """Markdown in which every tag and comment is text."""
    return _TAG.sub("&lt;", page)


def link(text: str, target: str) -> Markup:
    """A link to a file."""
    return Markup(f"[{_within_brackets(text)}]({quote(target)})")


def picture(text: str, target: str) -> Markup:
    """A picture of a file beside the page."""
    return Markup(f"![{_within_brackets(text)}]({quote(target)})")


def _within_brackets(text: str) -> str:
    return escape(text).replace("[", "&#91;").replace("]", "&#93;")


def markdown_table(
    rows: Sequence[Sequence[str]], left: int = 1, aligned_left: Sequence[bool] | None = None
) -> str:
    """Lays out a Markdown table, readable as plain text too; its cells are text, but for `Markup`.

    Args:
      rows: the headings and then the rows.
      left: how many columns are aligned to the left; the others are aligned to the right.
      aligned_left: the same, column by column.
    """
    sides = aligned_left or [i < left for i in range(len(rows[0]))]
    cells = [[cell if isinstance(cell, Markup) else escape(cell) for cell in row] for row in rows]
    return tabulate(
        cells[1:],
        headers=cells[0],
        tablefmt="pipe",
        colalign=["left" if side else "right" for side in sides] if len(cells) > 1 else None,
        disable_numparse=True,
        missingval="",
    )
