"""Where this system keeps a program's files of its user: what can be had again, and what cannot."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

NAME = "reasoning-edge"


def cache_folder() -> Path:
    """Models, packed weights and prefixes: `$TOOLKIT_HOME`, or `reasoning-edge` in the platform's folder for caches."""
    if home := os.environ.get("TOOLKIT_HOME"):
        return Path(home)
    return user_cache_path(NAME, appauthor=False, opinion=False)


def data_folder() -> Path:
    """Conversations and settings: `reasoning-edge` in the platform's folder for data."""
    return user_data_path(NAME, appauthor=False)
