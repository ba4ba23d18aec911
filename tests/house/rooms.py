"""Finds which room (folder) imports which; `python -m tests.house.rooms` prints it."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

from tests.house.modules import PACKAGES, ROOF, module_files
from toolkit.figures.tables import columns

Arrows = dict[str, set[str]]


@cache
def imports_of(path: Path) -> set[str]:
    """Return the dotted names of our own modules that a file imports, also inside functions."""
    known = module_files()
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} must import by absolute names"
            for alias in node.names:
                member = f"{node.module}.{alias.name}"
                names.add(member if member in known else node.module)
    return {name for name in names if name.split(".")[0] in PACKAGES}


def is_roof(name: str) -> bool:
    return any(name == roof or name.startswith(f"{roof}.") for roof in ROOF)


def house_of(name: str) -> str:
    """Return the top-level folder of a module or room; the roof is a house of its own."""
    return "toolkit.cli" if is_roof(name) else name.split(".")[0]


def room_of(module: str) -> str:
    """Return a module's dotted folder; `toolkit.__main__` belongs to the roof."""
    if module == "toolkit.__main__":
        return "toolkit.cli"
    return module if module_files()[module].name == "__init__.py" else module.rpartition(".")[0]


@cache
def files_of_rooms() -> dict[str, list[str]]:
    """Return the last names of each room's modules, except `__init__`."""
    rooms: dict[str, list[str]] = defaultdict(list)
    for module, path in module_files().items():
        if path.name != "__init__.py":
            rooms[room_of(module)].append(module.rpartition(".")[2])
    return rooms


@cache
def arrows() -> Arrows:
    """Return the rooms that each room imports."""
    found: Arrows = {room: set() for room in files_of_rooms()}
    for module, path in module_files().items():
        for name in imports_of(path):
            if room_of(module) != room_of(name):
                found[room_of(module)].add(room_of(name))
    return found


def neighbours(room: str, imported: set[str]) -> set[str]:
    """Return what a reader of a room must also know: rooms of its own house, and the names of other houses."""
    return {other if house_of(other) == house_of(room) else house_of(other) for other in imported}


def circle(found: Arrows) -> list[str]:
    """Return rooms that import each other in a circle; empty if there are none."""
    done: set[str] = set()

    def follow(room: str, way: list[str]) -> list[str]:
        if room in way:
            return [*way[way.index(room) :], room]
        if room in done:
            return []
        for other in sorted(found.get(room, ())):
            if turned := follow(other, [*way, room]):
                return turned
        done.add(room)
        return []

    return next((turned for room in sorted(found) if (turned := follow(room, []))), [])


def drawing() -> str:
    """Render one line per room: its number of files and the rooms that it imports."""
    found, files = arrows(), files_of_rooms()
    rows = []
    for room in sorted(found, key=lambda room: (PACKAGES.index(room.split(".")[0]), room)):
        below = " · ".join(sorted(neighbours(room, found[room]))) or "nothing of ours"
        rows.append((room, f"{len(files[room])} files", f"→ {below}"))
    return columns(rows, right=[1])


if __name__ == "__main__":
    print(drawing())
