"""The doctor says what is installed, and how to get what is missing."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import pytest

from toolkit.machine import doctor
from toolkit.machine.doctor import Finding, examine, largest_model, missing_requirements, to_facts, to_text


def test_every_missing_thing_has_a_remedy_and_every_remedy_an_arrow() -> None:
    findings = [Finding(subject="a", found="here"), Finding(subject="bb", found="lacks x", remedy="pip install x")]
    assert to_text(findings) == "✓ a   here\n✗ bb  lacks x  →  pip install x"
    assert to_facts(findings)["good"] is False


def test_examine_names_each_extra_with_its_commands() -> None:
    text = to_text(examine())
    for extra in ("[chat]", "[distill]", "[export]", "[serve]"):
        assert extra in text


def test_an_absent_dependency_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "gradio" else installed(name))
    assert missing_requirements("chat") == ["gradio"]
    finding = next(f for f in examine() if f.subject == "[chat]")
    assert finding.remedy == "pip install 'reasoning-edge[chat]'"


def test_a_version_that_an_extra_does_not_take_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.2" if name == "onnxruntime" else installed(name))
    assert missing_requirements("serve") == ["onnxruntime >=1.24 (1.2 is installed)"]
    finding = next(f for f in examine() if f.subject == "[serve]")
    assert not finding.is_good and finding.remedy == "pip install 'reasoning-edge[serve]'"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("GPU 0: NVIDIA H200 (UUID: GPU-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)", "NVIDIA H200, NVIDIA H200"),
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the driver",
            "no NVIDIA GPU that the driver finds",
        ),
    ],
)
def test_a_gpu_is_what_its_driver_finds(said: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert found in next(f for f in examine() if f.subject == "engines").found


LIGHT = {
    "reasoning-edge",
    "filelock",
    "httpx2",
    "huggingface_hub",
    "jinja2",
    "numpy",
    "psutil",
    "tokenizers",
    "onnxruntime",
    "uvicorn",
}
EDGE = {"chat": LIGHT | {"gradio", "starlette"}, "serve": LIGHT | {"llguidance", "prometheus-client", "starlette"}}


@pytest.mark.parametrize("installed", EDGE)
def test_an_edge_install_lacks_nothing_and_hears_how_to_get_more(
    installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "1" if name in EDGE[installed] else None)
    monkeypatch.setattr(doctor, "DEMO_MEMORY_BYTES", 1e18)
    findings = examine()
    assert all(finding.is_good for finding in findings)
    signs = {finding.subject: finding.sign for finding in findings}
    extras = ("[chat]", "[distill]", "[export]", "[serve]")
    assert [signs[extra] for extra in extras] == ["✓" if extra == f"[{installed}]" else "–" for extra in extras]
    assert "– [distill]  for pull, teach" in to_text(findings)


def test_what_is_installed_in_part_or_not_at_all_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in ({"trl"}, set()):
        monkeypatch.setattr(doctor, "_version", lambda name, names=names: "1" if name in names else None)
        finding = next(finding for finding in examine() if finding.subject == "[distill]")
        assert finding.sign == "✗" and "lacks accelerate, datasets" in finding.found


@pytest.mark.parametrize(("free_bytes", "largest"), [(0.4e9, 0.0), (3.5e9, 4e9), (7.5e9, 8e9), (24e9, 32e9)])
def test_a_memory_is_good_for_a_size_of_model(free_bytes: float, largest: float) -> None:
    """The middle two sizes are what a Raspberry Pi of 4 or 8 GB has free."""
    assert largest_model(free_bytes) == largest


def test_the_verbs_of_the_extras_are_the_commands() -> None:
    from toolkit.cli.parser import build_parser

    verbs = next(set(a.choices) for a in build_parser()._actions if isinstance(a.choices, dict))
    named = {verb for verbs_of in doctor.VERBS_OF_EXTRA.values() for verb in verbs_of.split(", ")}
    assert named == verbs - {"doctor"}
