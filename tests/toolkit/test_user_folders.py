"""Models and conversations are in the folders of each system, where earlier versions put them too."""

from __future__ import annotations

from pathlib import Path

import pytest
from platformdirs.macos import MacOS
from platformdirs.windows import Windows

from toolkit.machine.user_folders import NAME, cache_folder, data_folder


def test_the_cache_follows_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TOOLKIT_HOME")
    assert cache_folder().name == "reasoning-edge"


def test_the_folders_are_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TOOLKIT_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_folder() == tmp_path / "data" / "reasoning-edge"
    assert cache_folder() == tmp_path / "cache" / "reasoning-edge"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".local" / "share" / "reasoning-edge"
    assert cache_folder() == tmp_path / ".cache" / "reasoning-edge"


def test_other_systems_keep_them_where_earlier_versions_did(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    mac = MacOS(NAME, appauthor=False, opinion=False)
    assert mac.user_cache_path == tmp_path / "Library" / "Caches" / "reasoning-edge"
    assert mac.user_data_path == tmp_path / "Library" / "Application Support" / "reasoning-edge"
    monkeypatch.setattr("platformdirs.windows.get_win_folder", {"CSIDL_LOCAL_APPDATA": str(tmp_path / "Local")}.get)
    windows = Windows(NAME, appauthor=False, opinion=False)
    assert windows.user_cache_path == windows.user_data_path == tmp_path / "Local" / "reasoning-edge"
