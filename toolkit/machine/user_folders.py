"""Finds the folders for a user's files: a cache for what can be fetched again, and data for what cannot."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

NAME = "reasoning-edge"


def cache_folder() -> Path:
    """Return the folder of models, packed weights and prefixes: `$TOOLKIT_HOME`, or one in the platform's caches."""
    if home := os.environ.get("TOOLKIT_HOME"):
        return Path(home)
    return user_cache_path(NAME, appauthor=False, opinion=False)


def data_folder() -> Path:
    """Return the folder of conversations and settings: `reasoning-edge` in the platform's data folder."""
    return user_data_path(NAME, appauthor=False)


def cached_model_folder(name: str, inputs: Mapping[str, str]) -> Path:
    """Return the cache's folder of a model that is made of inputs with these digests."""
    key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
    return cache_folder() / "models" / f"{name}-{key}"
