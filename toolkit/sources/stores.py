"""Where the files of a folder may lie: in the folder, or among the blobs of the hub cache that the folder is a snapshot
of.

    models--owner--name/        the store
    ├── blobs/                  files, each by its digest
    └── snapshots/<commit>/     a folder of links into blobs

Links that stay there are followed, wherever the store was copied to; one that leaves is refused, because whoever wrote
the folder could not read what it leads to, and we could. Source: the layout of huggingface_hub's cache.
"""

from __future__ import annotations

from pathlib import Path

from toolkit.errors import InputError

BLOBS, SNAPSHOTS = "blobs", "snapshots"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that Git LFS has not fetched."""
LFS_REMEDY = "it is a pointer of Git LFS: run git lfs pull in the folder"


def check_inside(path: Path, folder: Path) -> None:
    """Raises `InputError` where a file of the folder is a link that leaves the folder and its store."""
    root = folder.resolve()
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # links in a ring
        raise InputError(f"{path} must lead to a file, and is a link to itself; copy the folder again") from error
    if not any(target.is_relative_to(allowed) for allowed in (root, *_blobs(root))):
        raise InputError(
            f"{path} must be a regular file of the folder or of its store, but is a link to {target}; "
            "copy the folder with the files that its links lead to (cp -rL)"
        )


def _blobs(folder: Path) -> list[Path]:
    """Not resolved any further: where `blobs` is a link itself, nothing lies inside it."""
    return [parent.parent / BLOBS for parent in folder.parents if parent.name == SNAPSHOTS]
