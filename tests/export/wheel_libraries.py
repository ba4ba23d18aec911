"""`python wheel_libraries.py FILE …`: prints what each compiled library is, needs and offers, as a line of JSON.

lief reads the formats of all systems; `tests.export.wheels` makes an environment with it.
"""

from __future__ import annotations

import json
import sys

import lief


def described(path: str) -> dict[str, object]:
    library = lief.parse(path)
    if isinstance(library, lief.ELF.Binary):
        versions = [aux.name for need in library.symbols_version_requirement for aux in need.get_auxiliary_symbols()]
        architecture, least = library.header.machine_type.name, max(versions, key=_parts)
        imported, exported = library.libraries, [each.name for each in library.exported_symbols]
    elif isinstance(library, lief.MachO.Binary):
        architecture, least = library.header.cpu_type.name, ".".join(map(str, library.build_version.minos))
        imported = [each.name for each in library.libraries if each.command.name != "ID_DYLIB"]
        exported = [each.name.removeprefix("_") for each in library.exported_symbols]
        assert library.has_code_signature, "Apple silicon loads nothing without a signature"
    else:
        architecture, least = library.header.machine.name, ""
        imported = [each.name for each in library.imports]
        exported = [each.name for each in library.get_export().entries]
    return {"architecture": architecture, "least": least, "imported": imported, "exported": exported}


def _parts(version: str) -> list[int]:
    """Read GLIBC_2.17 as numbers."""
    return [int(part) for part in version.rpartition("_")[2].split(".")]


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print(json.dumps(described(path)))
