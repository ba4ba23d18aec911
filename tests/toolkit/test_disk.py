"""What was written is synced, whatever it is."""

from __future__ import annotations

from pathlib import Path

from toolkit.disk import sync


def test_files_folders_and_copies_of_read_only_files_are_synced(tmp_path: Path) -> None:
    read_only = tmp_path / "LICENSE"
    read_only.write_text("mine")
    read_only.chmod(0o444)
    for path in (read_only, tmp_path):
        sync(path)
    assert read_only.read_text() == "mine"
