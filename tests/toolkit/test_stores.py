"""Links are followed inside a folder's own store, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.errors import InputError
from toolkit.sources.stores import check_inside


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A snapshot as the hub's cache stores it."""
    store = tmp_path / "models--me--model"
    folder = store / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (store / "blobs").mkdir()
    (store / "blobs" / "1").write_text("x")
    (folder / "file").symlink_to("../../blobs/1")
    return folder


def test_a_link_into_the_store_s_blobs_is_followed(snapshot: Path, tmp_path: Path) -> None:
    check_inside(snapshot / "file", snapshot)
    (tmp_path / "short").symlink_to(snapshot)
    check_inside(tmp_path / "short" / "file", tmp_path / "short")
    (snapshot / "int4").mkdir()
    (snapshot / "int4" / "file").symlink_to("../../../blobs/1")
    check_inside(snapshot / "int4" / "file", snapshot / "int4")


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to("a")
    check_inside(tmp_path / "b", tmp_path)


def test_a_link_that_leaves_is_refused(snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    for number, target in enumerate(
        ["../../../secret", str(tmp_path / "secret"), "../../../models--me--other/blobs/1"]
    ):
        link = snapshot / f"link{number}"
        link.symlink_to(target)
        with pytest.raises(
            InputError, match=rf"link{number} must be a regular file of the folder or of its store, but"
        ):
            check_inside(link, snapshot)


def test_a_blob_that_leads_on_and_blobs_that_are_elsewhere_are_refused(snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    blobs = snapshot.parent.parent / "blobs"
    (blobs / "2").symlink_to(tmp_path / "secret")
    (snapshot / "two").symlink_to("../../blobs/2")
    with pytest.raises(InputError, match="but is a link to"):
        check_inside(snapshot / "two", snapshot)
    (tmp_path / "elsewhere").mkdir()
    blobs.rename(tmp_path / "elsewhere" / "blobs")
    blobs.symlink_to(tmp_path / "elsewhere" / "blobs")
    with pytest.raises(InputError, match="but is a link to"):
        check_inside(snapshot / "file", snapshot)


def test_links_in_a_ring_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InputError, match="is a link to itself"):
        check_inside(tmp_path / "a", tmp_path)
