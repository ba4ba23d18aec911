"""Judges rate what no program can verify: how helpful and how harmless a completion is, in [0, 1].

    helpful    rates the answer alone, so that the judge's taste does not affect the reasoning
    harmless   rates the whole completion, including the reasoning
                                                                        (DeepSeek-R1 report, section 2.3.4)

A judge is a sequence classifier in a folder, or a model behind an endpoint that is asked for a number.

A missing judgement must not act as a reward: since advantages are differences within a group, any fixed number would
favour or punish such a completion. So it gets the mean of the judged ones of its group, which is no advantage; a group
without any judgement is flat, which teaches nothing and which dynamic sampling replaces. An unreachable server ends the
run instead, to be resumed when the server is back: training without the judge would pursue another goal.

B texts of a batch, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from distill.endpoints.remote_teacher import Endpoint, connect
from distill.teachers.ratings_asked import ask_ratings
from distill.verification.ratings import QUALITIES, Quality, judge_prompt
from toolkit.errors import InputError
from toolkit.formats.chat_format import split_completion
from toolkit.model.loading import load_whole
from toolkit.records import Problem
from toolkit.runs import folder_digest
from toolkit.sources.model_names import is_endpoint, resolve

JUDGED_AT_ONCE = 16
"""Responses per batch of a classifier."""


class Judge(Protocol):
    """Rates groups of completions."""

    def rewards(self, problems: Sequence[Problem], groups: Sequence[Sequence[str]]) -> list[list[float]]:
        """Rate one group of completions per problem, each in [0, 1]."""


def open_judges(model: str, folder: Path) -> dict[str, Judge]:
    """Open a model as judge of both qualities: an endpoint, whose answers are kept in `folder`, or a classifier."""
    if is_endpoint(model):
        endpoint = connect(model)
        return {quality: EndpointJudge(endpoint=endpoint, quality=quality, folder=folder) for quality in QUALITIES}
    return {quality: ClassifierJudge.open(resolve(model), quality) for quality in QUALITIES}


def check_judge(model: str) -> None:
    """Raise `InputError` if a model cannot judge: no classifier, or an endpoint that does not answer."""
    if is_endpoint(model):
        connect(model)
    else:
        ClassifierJudge.open(resolve(model), "helpful")


def judge_digest(model: str) -> str:
    """Return a judge's digest: of a folder's content, or of an endpoint's address."""
    return connect(model).digest if is_endpoint(model) else folder_digest(resolve(model))


def judged_text(quality: Quality, completion: str) -> str:
    """Return the part of a completion that is judged, without tags; empty if there is none."""
    parts = split_completion(completion, opened=True)
    if quality == "helpful":
        return parts.answer.strip() if parts.closed else ""
    return f"{parts.reasoning.strip()}\n\n{parts.answer.strip()}".strip()


def with_means(scores: Sequence[float | None]) -> list[float]:
    """Replace missing scores of a group by the mean of the others, or by 0 if all are missing."""
    known = [score for score in scores if score is not None]
    mean = sum(known) / len(known) if known else 0.0
    return [mean if score is None else score for score in scores]


@dataclass(frozen=True, kw_only=True)
class ClassifierJudge:
    """A Hugging Face sequence classifier, such as a reward model."""

    model: PreTrainedModel
    tokenizer: Any
    label: int | None
    """The label whose probability is the score; None if the model has one logit, whose sigmoid is the score."""
    quality: Quality
    batch_size: int

    @classmethod
    def open(cls, folder: Path, quality: Quality) -> Self:
        """Load a classifier's folder; the last of several labels is rewarded.

        Raises `InputError` if the folder holds no classifier, or one whose labels do not exclude each other.
        """
        config = _config(folder)
        kind = next(iter(config.architectures or []), config.model_type)
        if not kind.endswith("ForSequenceClassification"):
            raise InputError(f"{folder} holds {kind}, which is not a sequence classifier; name another model")
        if config.problem_type == "multi_label_classification":
            raise InputError(
                f"the labels of {folder} do not exclude each other ({config.problem_type}); name a reward model, or a "
                "single-label classifier"
            )
        model: Any = load_whole(
            AutoModelForSequenceClassification, folder, extra_allowed=True, dtype=torch.float32, use_safetensors=True
        )
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # JSON and the tokenizers library each raise their own
            raise InputError(
                f"{folder} has no tokenizer that transformers can load: {error}; name another model"
            ) from error
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model.config.pad_token_id = tokenizer.pad_token_id
        return cls(
            model=model.to(device).eval(),
            tokenizer=tokenizer,
            label=None if config.num_labels == 1 else config.num_labels - 1,
            quality=quality,
            # a decoder's classifier finds the last token by its padding
            batch_size=JUDGED_AT_ONCE if tokenizer.pad_token_id is not None else 1,
        )

    def rewards(self, problems: Sequence[Problem], groups: Sequence[Sequence[str]]) -> list[list[float]]:
        """Rate completions, as `Judge` says; 0 if there is nothing to judge."""
        texts = [judged_text(self.quality, completion) for group in groups for completion in group]
        questions = [problem.transcript for problem, group in zip(problems, groups, strict=True) for _ in group]
        asked = [i for i, text in enumerate(texts) if text]
        asked.sort(key=lambda i: len(questions[i]) + len(texts[i]))  # similar lengths together: little padding
        scores = [0.0] * len(texts)
        for start in range(0, len(asked), self.batch_size):
            places = asked[start : start + self.batch_size]
            found = self.scores([(questions[i], texts[i]) for i in places])
            for place, score in zip(places, found, strict=True):
                scores[place] = score
        return _grouped(scores, groups)

    @torch.inference_mode()
    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Score questions with their responses, as one batch."""
        device = self.model.device
        logits_BL = self.model(**self._encode(pairs).to(device)).logits.float()
        if self.label is None:
            return torch.sigmoid(logits_BL[:, 0]).tolist()
        return torch.softmax(logits_BL, dim=-1)[:, self.label].tolist()

    def _encode(self, pairs: Sequence[tuple[str, str]]) -> Any:
        """Encode by the model's own template, or else as a pair of texts; cut the end of what is too long.

        Question and response count as plain text, so a response cannot forge a turn.
        """
        context = getattr(self.model.config, "max_position_embeddings", self.tokenizer.model_max_length)
        limits: dict[str, Any] = {
            "truncation": True,
            "max_length": min(context, self.tokenizer.model_max_length),
            "padding": len(pairs) > 1,
            "return_tensors": "pt",
        }
        questions, texts = [question for question, _ in pairs], [text for _, text in pairs]
        if not self.tokenizer.chat_template:
            return self.tokenizer(questions, texts, split_special_tokens=True, **limits)
        conversations = [
            [{"role": "user", "content": question}, {"role": "assistant", "content": text}] for question, text in pairs
        ]
        return self.tokenizer.apply_chat_template(
            conversations, sanitize_control_tokens=True, return_dict=True, **limits
        )


@dataclass(frozen=True, kw_only=True)
class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint that is asked for a number from 0 to 10."""

    endpoint: Endpoint
    quality: Quality
    folder: Path
    """Keeps the answers, one file per batch, so that a resumed run gets the same rewards."""

    def rewards(self, problems: Sequence[Problem], groups: Sequence[Sequence[str]]) -> list[list[float]]:
        """Rate completions, as `Judge` says; 0 if there is nothing to judge, missing scores by `with_means`.

        Raises `InputError` if the server does not answer after several tries.
        """
        prompts = [
            judge_prompt(self.quality, problem.transcript, text)
            if (text := judged_text(self.quality, completion))
            else ""
            for problem, group in zip(problems, groups, strict=True)
            for completion in group
        ]
        scores = ask_ratings(self.endpoint, sorted({prompt for prompt in prompts if prompt}), self.folder)
        return [with_means(group) for group in _grouped([scores[p] if p else 0.0 for p in prompts], groups)]


def _grouped(scores: Sequence[Any], groups: Sequence[Sequence[str]]) -> list[list[Any]]:
    """Split a flat list into the groups' shape."""
    rest = iter(scores)
    return [[next(rest) for _ in group] for group in groups]


def _config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no readable config.json of a model: {error}; name another model") from error
