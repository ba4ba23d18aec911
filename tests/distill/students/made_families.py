"""Makes a tiny random student of each family: its architecture, its special tokens and its published chat template.

Templates come from TRL's wheel where it has them; the others are written down here as they were published, cut to what
has a part in the form. The vocabularies are small, with the family's real special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from tokenizers import AddedToken, Tokenizer, normalizers

from tests.toolkit.made_tokenizers import GPT_2, LLAMA, byte_level, sentence_piece

SHIPPED = Path(trl.__file__).parent / "chat_templates"

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    '{%- if messages[0]["role"] == "system" %}{%- set system_message = messages[0]["content"] %}'
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}\n"
    '{{- bos_token }}\n{%- for message in loop_messages %}\n    {%- if message["role"] == "user" %}\n'
    "        {%- if tools is not none and loop.last %}\n"
    '            {{- "[AVAILABLE_TOOLS] [" }}{%- for tool in tools %}{{- tool.function | tojson }}{%- endfor %}'
    '{{- "][/AVAILABLE_TOOLS]" }}\n        {%- endif %}\n'
    "        {%- if loop.last and system_message is defined %}\n"
    '            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}\n'
    '        {%- else %}\n            {{- "[INST] " + message["content"] + "[/INST]" }}\n        {%- endif %}\n'
    '    {%- elif message["role"] == "assistant" %}\n        {{- " " + message["content"]|trim + eos_token}}\n'
    '    {%- else %}\n        {{- raise_exception("Only user and assistant roles are supported!") }}\n'
    "    {%- endif %}\n{%- endfor %}\n"
)
SMOLLM3 = (
    "{%- if enable_thinking is not defined -%}\n{%- set enable_thinking = true -%}\n{%- endif -%}\n"
    '{%- set reasoning_mode = "/think" if enable_thinking else "/no_think" -%}\n'
    '{%- set custom_instructions = "" -%}\n{%- if messages[0].role == "system" -%}\n'
    "  {%- set custom_instructions = messages[0].content.rstrip() -%}\n{%- endif -%}\n"
    '{{- "<|im_start|>system\\n## Metadata\\n\\nToday Date: " + strftime_now("%d %B %Y") + "\\nReasoning Mode: " '
    '+ reasoning_mode + "\\n\\n" -}}\n{{- "## Custom Instructions\\n\\n" + custom_instructions + "\\n\\n" -}}\n'
    '{%- if tools -%}\n{{- "### Tools\\n\\n" -}}{%- for tool in tools -%}{{- tool | tojson -}}{%- endfor -%}\n'
    '{%- endif -%}\n{{- "<|im_end|>\\n" -}}\n{%- for message in messages -%}\n'
    '    {%- set content = message.content if message.content is string else "" -%}\n'
    '    {%- if message.role == "user" -%}\n'
    '        {{ "<|im_start|>" + message.role + "\\n"  + content + "<|im_end|>\\n" }}\n'
    '    {%- elif message.role == "assistant" -%}\n        {% generation %}\n'
    '        {%- if reasoning_mode == "/think" -%}\n'
    '            {{ "<|im_start|>assistant\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}\n        {%- else -%}\n'
    '            {{ "<|im_start|>assistant\\n<think>\\n\\n</think>\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}\n'
    "        {%- endif -%}\n        {% endgeneration %}\n    {%- endif -%}\n{%- endfor -%}\n"
    '{%- if add_generation_prompt -%}\n    {%- if reasoning_mode == "/think" -%}\n'
    '        {{ "<|im_start|>assistant\\n" }}\n    {%- else -%}\n'
    '        {{ "<|im_start|>assistant\\n<think>\\n\\n</think>\\n"  }}\n    {%- endif -%}\n{%- endif -%}\n'
)
PHI_4_MINI = (
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not "
    "none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + "
    "'<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
GRANITE = (
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content'] %}\n"
    "    {%- set loop_messages = messages[1:] %}\n{%- else %}\n"
    "    {%- set system_message = \"Knowledge Cutoff Date: April 2024.\\nToday's Date: \" + strftime_now('%B %d, %Y') "
    '+ ".\\nYou are Granite, developed by IBM." %}\n    {%- if thinking %}\n'
    '    {%- set system_message = system_message + " Write your thoughts between <think></think> and write your '
    'response between <response></response> for each user query." %}\n    {%- endif %}\n'
    "    {%- set loop_messages = messages %}\n{%- endif %}\n"
    "{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\n' }}\n"
    "{%- if tools %}\n    {{- '<|start_of_role|>available_tools<|end_of_role|>' }}\n    {{- tools | tojson(indent=4) }}"
    "\n"
    "    {{- '<|end_of_text|>\n' }}\n{%- endif %}\n{%- for message in loop_messages %}\n"
    "    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}\n"
    "    {%- if loop.last and add_generation_prompt %}\n        {{- '<|start_of_role|>assistant' }}\n"
    "        {%- if controls %}\n            {{- ' ' + controls | tojson()}}\n        {%- endif %}\n"
    "        {{- '<|end_of_role|>' }}\n    {%- endif %}\n{%- endfor %}"
)
OLMO_2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}"
    "{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}{% else %}"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
QWEN = LLAMA.replace(r"\p{N}{1,3}", r"\p{N}")
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA_3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
R1 = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
COHERE = (
    "<BOS_TOKEN>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is real of a family, and what a student of it is to become."""

    model: str
    """The prefix of the configuration's and the model's class."""
    template: str | None
    special: tuple[str, ...]
    eos: str
    form: str
    """The form of its voice."""
    end: str
    """The token that ends its turns."""
    bos: str | None = None
    plain: tuple[str, ...] = ()
    """Added tokens that are not special."""
    tokenizer: Callable[[], Tokenizer] = lambda: byte_level(LLAMA)
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of its configuration."""
    exports: bool = True
    """Whether `toolkit export` knows its architecture."""


def qwen() -> Tokenizer:
    """Make a tokenizer that reads digits one by one; transformers reads those of Qwen2 so, whatever their files say."""
    tokenizer = byte_level(QWEN)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def shipped(name: str) -> str:
    return (SHIPPED / f"{name}.jinja").read_text(encoding="utf-8")


FAMILIES = {
    "SmolLM2": Family(
        model="Llama",
        template=SMOLLM2,
        special=CHATML,
        eos="<|im_end|>",
        bos="<|im_start|>",
        form="chatml",
        end="<|im_end|>",
        tokenizer=lambda: byte_level(GPT_2, digits=True),
    ),
    "Llama 3.2": Family(
        model="Llama",
        template=shipped("llama3_2"),
        special=LLAMA_3,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        form="r1",
        end="<|eot_id|>",
        tokenizer=lambda: byte_level(LLAMA, ignore_merges=True),
        settings={
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            }
        },
    ),
    "Llama 3 base": Family(
        model="Llama",
        template=None,
        special=LLAMA_3,
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        form="base",
        end="<|end_of_text|>",
        tokenizer=lambda: byte_level(LLAMA, ignore_merges=True),
    ),
    "Mistral": Family(
        model="Mistral",
        template=MISTRAL,
        special=("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
        bos="<s>",
        eos="</s>",
        form="r1",
        end="</s>",
        tokenizer=lambda: sentence_piece("legacy"),
        settings={"sliding_window": None},
    ),
    "Qwen2.5": Family(
        model="Qwen2",
        tokenizer=qwen,
        template=shipped("qwen2_5"),
        special=CHATML,
        eos="<|im_end|>",
        form="r1",
        end="<|im_end|>",
    ),
    "Qwen3": Family(
        model="Qwen3",
        tokenizer=qwen,
        template=shipped("qwen3"),
        special=CHATML,
        plain=("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
        eos="<|im_end|>",
        form="own",
        end="<|im_end|>",
        settings={"head_dim": 16},
    ),
    "SmolLM3": Family(
        model="SmolLM3",
        template=SMOLLM3,
        special=CHATML,
        plain=("<think>", "</think>"),
        eos="<|im_end|>",
        form="own",
        end="<|im_end|>",
    ),
    "R1-Distill": Family(
        model="Qwen2",
        tokenizer=qwen,
        template=shipped("deepseek_r1_distill"),
        special=R1,
        plain=("<think>", "</think>"),
        bos=R1[0],
        eos=R1[1],
        form="own",
        end=R1[1],
    ),
    "Gemma 3": Family(
        model="Gemma3",
        template=shipped("gemma3"),
        special=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        form="r1",
        end="<end_of_turn>",
        tokenizer=lambda: sentence_piece("never"),
        settings={"head_dim": 16, "sliding_window": 32, "query_pre_attn_scalar": 16},
    ),
    "Phi-4-mini": Family(
        model="Phi3",
        template=PHI_4_MINI,
        special=("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>", "<|/tool|>"),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        form="r1",
        end="<|end|>",
        settings={"partial_rotary_factor": 0.5, "num_attention_heads": 2, "tie_word_embeddings": True},
    ),
    "Granite": Family(
        model="Granite",
        template=GRANITE,
        special=("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        bos="<|end_of_text|>",
        eos="<|end_of_text|>",
        form="r1",
        end="<|end_of_text|>",
        settings={
            "logits_scaling": 8.0,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.0156,
        },
    ),
    "OLMo 2": Family(
        model="Olmo2",
        template=OLMO_2,
        special=("<|endoftext|>",),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        form="r1",
        end="<|endoftext|>",
    ),
    "Command R7B": Family(
        model="Cohere2",
        template=shipped("cohere2"),
        special=COHERE,
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        form="r1",
        end="<|END_RESPONSE|>",
        settings={"logit_scale": 0.25, "sliding_window": 32},
        exports=False,
    ),
}


def write_tokenizer(family: Family, folder: Path) -> Tokenizer:
    """Write the chat files of a student of the family."""
    tokenizer = family.tokenizer()
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in family.special])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in family.plain])
    if family.template is None:  # a base model's texts begin with a token all the same
        from tokenizers.processors import TemplateProcessing

        begin = family.special[0]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": family.bos, "eos_token": family.eos}
    template = {} if family.template is None else {"chat_template": family.template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | template))
    return tokenizer


def write_family(name: str, folder: Path) -> Path:
    """Write a tiny random student of a family."""
    family = FAMILIES[name]
    tokenizer = write_tokenizer(family, folder)
    rows = -(-tokenizer.get_vocab_size() // 16) * 16
    ids = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": tokenizer.token_to_id(family.eos)}
    text = "Text" if family.model == "Gemma3" else ""
    config = getattr(transformers, f"{family.model}{text}Config")(**TINY | ids | {"vocab_size": rows} | family.settings)
    torch.manual_seed(0)
    getattr(transformers, f"{family.model}ForCausalLM")(config).to(torch.bfloat16).save_pretrained(folder)
    return folder
