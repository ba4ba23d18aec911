"""Checks that a folder's files are in it, or among the blobs of the hub cache that the folder is a snapshot of.

    models--owner--name/        the store
    ├── blobs/                  files, named by their digests
    └── snapshots/<commit>/     a folder of links into blobs

Links within the store are followed, wherever it was copied to. One that leaves it is refused, because whoever wrote the
folder may not be able to read the file that it leads to, while we are. Source: the layout of huggingface_hub's cache.
"""

from __future__ import annotations

from pathlib import Path

from toolkit.errors import InputError

BLOBS, SNAPSHOTS = "blobs", "snapshots"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""The beginning of a file that Git LFS has not fetched."""
LFS_REMEDY = "it is a pointer of Git LFS: run git lfs pull in the folder"


def check_inside(path: Path, folder: Path) -> None:
    """Raise `InputError` if a file of the folder is a link that leaves the folder and its store."""
    root = folder.resolve()
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise InputError(f"{path} is a link to itself; copy the folder again") from error
    if not any(target.is_relative_to(allowed) for allowed in (root, *_blobs(root))):
        raise InputError(
            f"{path} must be a regular file of the folder or of its store, but is a link to {target}; "
            "copy the folder with the files that its links lead to (cp -rL)"
        )


def _blobs(folder: Path) -> list[Path]:
    """Return the `blobs` folders, unresolved: if `blobs` is itself a link, no file is inside it."""
    return [parent.parent / BLOBS for parent in folder.parents if parent.name == SNAPSHOTS]
