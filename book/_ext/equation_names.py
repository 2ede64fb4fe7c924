"""The names of equations: their tags in the text, and the anchors of their links. Without Sphinx, for the notebooks tool."""

from __future__ import annotations

import re

TAG = re.compile(r"\\tag\*?\s*\{([^{}]*)\}")


def anchor(tag: str) -> str:
    """The anchor of a tag: ``4.44`` → ``eq-4-44``, ``4.49′`` or ``4.49'`` → ``eq-4-49-prime``."""
    return "eq-" + "-".join(re.findall(r"[a-z0-9]+", re.sub("[′']", " prime", tag.lower())))
