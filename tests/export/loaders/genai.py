"""Greedy ids of an exported folder by onnxruntime-genai. Stands alone: runs where the project is not installed."""

from __future__ import annotations

import json
import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import, which reads it

import onnxruntime_genai as genai


def main() -> None:
    request = json.load(sys.stdin)
    model = genai.Model(sys.argv[1])
    answers = []
    for prompt in request["prompts"]:
        settings = genai.GeneratorParams(model)
        settings.set_search_options(max_length=len(prompt) + request["new_tokens"], do_sample=False)
        generator = genai.Generator(model, settings)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        answers.append([int(token) for token in generator.get_sequence(0)[len(prompt) :]])
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
