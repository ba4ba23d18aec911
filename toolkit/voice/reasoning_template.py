"""Puts R1's form of reasoning around a model's own chat template, whose text stays as it is.

    messages without earlier thoughts ─> the model's own template ─> <think>⏎, where a turn is to be written
    ────────── added before it ──────                                ─────────── added behind it ───────────

So the model keeps its special tokens, its default system message, its tools and its switches, and nothing of the
template has to be understood. Both additions use only Jinja that llama.cpp's engine has too, and it sees by
`content.split('</think>')` in a template's source that the model thinks (docs/explanation/student-voice.md).
"""

from __future__ import annotations

from toolkit.formats.chat_format import CLOSE, OPEN, REASONING_TEMPLATE, TURN_END

OPENING = f"{OPEN}\n"
"""What a prompt ends with in R1's form."""

_BEGINS_WITH_THOUGHT = (
    "message['role'] == 'assistant' and message['content'] is string and "
    f"message['content'].lstrip().startswith('{OPEN}') and '{CLOSE}' in message['content']"
)
_BEHIND_THOUGHT = f"(content.split('{CLOSE}')[1:] | join('{CLOSE}'))"
_WITHOUT_THOUGHTS = f"""
{{%- set r1 = namespace(thinks=false, messages=[]) -%}}
{{%- for message in messages if {_BEGINS_WITH_THOUGHT} -%}}
{{%- set r1.thinks = true -%}}
{{%- endfor -%}}
{{%- if r1.thinks -%}}
{{%- for message in messages -%}}
{{%- if {_BEGINS_WITH_THOUGHT} -%}}
{{%- set content = message['content'] -%}}
{{%- set content = {_BEHIND_THOUGHT}.lstrip() -%}}
{{%- if message['tool_calls'] -%}}
{{%- set message = {{'role': 'assistant', 'content': content, 'tool_calls': message['tool_calls']}} -%}}
{{%- else -%}}
{{%- set message = {{'role': 'assistant', 'content': content}} -%}}
{{%- endif -%}}
{{%- endif -%}}
{{%- set r1.messages = r1.messages + [message] -%}}
{{%- endfor -%}}
{{%- set messages = r1.messages -%}}
{{%- endif %}}
""".lstrip("\n")
"""Leaves out the thoughts that earlier answers begin with, as `REASONING_TEMPLATE` does.

Its last line end is removed by `trim_blocks`, so that the template after it begins at the beginning of a line.
"""
_THEN_THINK = f"{{{{ '{OPEN}\\n' if add_generation_prompt else '' }}}}"
"""An expression, since a block would change the white space before it."""


def with_reasoning(template: str) -> str:
    """Return the template with R1's form around it.

    Jinja drops a template's last line end, which would stay if something followed it.
    """
    return _WITHOUT_THOUGHTS + template.removesuffix("\n") + _THEN_THINK


def ending_with_eos(*, begins: bool) -> str:
    """Return `REASONING_TEMPLATE` for a base model, whose turns end with its own end-of-text token.

    `begins`: whether its texts begin with a token too.
    """
    ended = REASONING_TEMPLATE
    for old, new in (
        (f"'{TURN_END}\\n'", "eos_token + '\\n'"),
        (f"content.split('{CLOSE}', 1)[1]", _BEHIND_THOUGHT),
    ):
        assert old in ended
        ended = ended.replace(old, new)
    return ("{{- bos_token -}}" if begins else "") + ended
