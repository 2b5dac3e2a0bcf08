"""Lists in docstrings: lines that say `name: what it is` become items, one a field.

The docstrings of result classes describe their fields line by line, which reads well in a terminal;
Markdown would run the lines together into one paragraph.
"""

import re

import griffe

ITEM = re.compile(r"(?:\w+(?:, \w+)*(?: … \w+)?): \S")
BESIDE = re.compile(r"  +(?=\w+(?:, \w+)*: )")  # two fields on one line


class Fields(griffe.Extension):
    """Rewrites the docstrings of classes."""

    def on_class_instance(self, *, cls: griffe.Class, **_) -> None:
        """Called for every class that is read."""
        if cls.docstring is not None:
            blocks = cls.docstring.value.split("\n\n")
            cls.docstring.value = "\n\n".join(map(itemised, blocks))


def itemised(block: str) -> str:
    """A paragraph of fields as a list; any other as it is."""
    if not ITEM.match(block):
        return block
    lines = []
    for line in block.split("\n"):
        for part in BESIDE.split(line):
            starts = ITEM.match(part)
            name, _, text = part.partition(": ")
            lines.append(f"- **{name}**: {text}" if starts else f"    {part.strip()}")
    return "\n".join(lines)
