"""Names of cities that join tables, which may stand in full or as their code.

Two names agree where they are equal, or where one of both is the code in the last parentheses of the other: a table may say ``ALA`` or ``Almaty (ALA)`` for the
folder ``Almaty (ALA)``. Two full names that only share a code (of a country, say) do not. So may the name of their column: ``city`` and ``city(IATA)``.
Ids of patches agree only where they are equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

CODE = re.compile(r".*\(([^()]+)\)\s*", re.DOTALL)
ID = "geocode"


def code_of(name: str) -> str:
    """The code in the last parentheses of a name: ``ALA`` of ``Almaty (ALA)``; nothing where there is none."""
    found = CODE.fullmatch(name)
    return found[1].strip() if found else ""


def key_columns(header: Iterable[object], key: str) -> list[str]:
    """The columns that may hold a key: the one of that name, or else those of that name with something in parentheses behind it."""
    names = [str(name) for name in header]
    return [name for name in names if name == key] or [name for name in names if re.fullmatch(rf"{re.escape(key)}\s*\(.*\)", name)]


def match_keys(names: Iterable[str], keys: Sequence[str], column: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The key that each name agrees with.

    Args:
        names: What is looked for.
        keys: What there is, each once.
        column: What they are; ids of patches (``geocode``) have no codes.

    Returns:
        The key of each name that agrees with one, and the keys of each that agrees with several.
    """
    there = set(keys)
    by_code: dict[str, list[str]] = {}
    for key in keys if column != ID else ():
        if code := code_of(key):
            by_code.setdefault(code, []).append(key)
    found, several = {}, {}
    for name in names:
        code = code_of(name) if column != ID else ""
        candidates = [name] if name in there else [code] if code in there else by_code.get(name, [])
        if len(candidates) > 1:
            several[name] = candidates
        elif candidates:
            found[name] = candidates[0]
    return found, several
