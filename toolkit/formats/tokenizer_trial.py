"""Tries in a child process whether a `tokenizer.json` can be read without ending the process.

A crafted file can make the tokenizers library abort, which Python cannot catch, or take all memory or time. So each
file is loaded once in a process that may die of it, which prints the steps that the library has read, encodes a text and
decodes some ids. The digest of a harmless file is kept in the cache folder, because a real model's tokenizer takes half
a second to load.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from toolkit.errors import InputError
from toolkit.formats.tokenizer_bounds import MOST_GROWTH, check_growth
from toolkit.json_files import check_regular
from toolkit.machine.user_folders import cache_folder
from toolkit.runs import file_digest, replace_text

MOST_BYTES = 2 * 2**30
"""The child's address space: ten times what the largest known vocabulary takes."""
TIMEOUT_S = 20
STEPS = ("normalizer", "pre_tokenizer", "decoder")
TRIAL = """
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
except (ImportError, ValueError, OSError):
    pass  # Windows has no limits, Apple silicon refuses small ones
try:
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(sys.argv[1])
    steps = {name: getattr(tokenizer, name) for name in sys.argv[3:]}
    print(json.dumps({name: json.loads(step.__getstate__()) for name, step in steps.items() if step}), flush=True)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    text = "".join(map(chr, range(1, 0x180))) + " word \\u4f60\\u597d \\u0645\\u0631 e\\u0301 \\U0001f469\\u200d\\U0001f467" * 100
    tokenizer.encode(text, add_special_tokens=False)
    tokenizer.decode(list(range(min(tokenizer.get_vocab_size(), 1000))), skip_special_tokens=False)
except BaseException as error:
    sys.exit((str(error).splitlines() or [type(error).__name__])[0])
"""


def try_tokenizer(path: Path) -> None:
    """Raise `InputError` if reading the file fails, or ends the process that tries it."""
    check_regular(path)
    proof = _proofs() / f"{file_digest(path)}-{metadata.version('tokenizers')}-{MOST_GROWTH}"
    if proof.exists():
        return
    command = [sys.executable, "-P", "-c", TRIAL, str(path), str(MOST_BYTES), *STEPS]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        _check_steps(path, error.stdout or b"")
        raise InputError(
            f"{path} must be a tokenizer that loads within {TIMEOUT_S} s; it took longer; get it again"
        ) from None
    _check_steps(path, done.stdout)
    lines = done.stderr.decode(errors="replace").strip().splitlines() or [""]
    if done.returncode == 1:
        raise InputError(f"{path} must be a tokenizer of the tokenizers library: {lines[-1]}; get it again")
    if done.returncode:
        raise InputError(
            f"{path} must be a tokenizer of the tokenizers library; it ends the process that reads it "
            f"(exit {done.returncode}); get it again from a source that you trust"
        )
    try:
        replace_text(proof, "")
    except InputError:
        return  # if nothing can be written, each process tries again


def _check_steps(path: Path, said: bytes) -> None:
    """Check the steps that the library has read, if it got that far."""
    if said.endswith(b"\n"):
        check_growth(path, json.loads(said))


def _proofs() -> Path:
    return cache_folder() / "tokenizers"
