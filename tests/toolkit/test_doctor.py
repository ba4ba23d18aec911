"""The doctor says what is here, and for what is missing how to get it."""

from __future__ import annotations

import pytest

from toolkit import doctor
from toolkit.doctor import Finding, examine, missing_requirements, to_facts, to_text


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


def test_the_verbs_of_the_extras_are_the_commands() -> None:
    from toolkit.parser import build_parser

    verbs = next(set(a.choices) for a in build_parser()._actions if isinstance(a.choices, dict))
    named = {verb for verbs_of in doctor.VERBS_OF_EXTRA.values() for verb in verbs_of.split(", ")}
    assert named == verbs - {"doctor"}
