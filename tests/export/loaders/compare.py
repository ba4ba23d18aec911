"""`python -m tests.export.loaders.compare DIR`: other programs generate what our runner does from the same folder.

Here our runner uses onnxruntime's kernels, as the others do: ours add in another order, which may decide between two
nearly equal tokens.

onnxruntime-genai and optimum's `ORTModelForCausalLM` need incompatible versions, so each gets an environment of its own
under --environments, made once. It prints a line for each, and its exit code is 1 if a token differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from export.foreign.optimum_export import REQUIREMENTS as OPTIMUM_REQUIREMENTS
from export.runtime.decoder import OnnxDecoder
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.generate import Sampling, complete
from toolkit.machine.environment import interpreter

REQUIREMENTS = {
    "genai": ["onnxruntime-genai==0.18.0"],
    "optimum": list(OPTIMUM_REQUIREMENTS),
}
"""A loader, by the name of its script beside this file, and what it needs."""
QUESTIONS = (
    "State the final answer to the following arithmetic problem: 57 + 87 + 70 =",
    "Find the Greatest Common Divisor (GCD) of these numbers: 84, 36. Give only the GCD as your final answer.",
    "Spell this word backward (example: sun -> nus): reason",
    "What is an aqueduct?",
)
NEW_TOKENS = 64


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.export.loaders.compare", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--environments", type=Path, default=Path("runs/loaders"))
    options = parser.parse_args()
    chat_format = ChatFormat.from_folder(options.folder)
    decoder = OnnxDecoder(options.folder, cache="exact", own_kernels=False)
    prompts = [chat_format.prompt_ids([{"role": "user", "content": question}]) for question in QUESTIONS]
    sampling = Sampling(temperature=0.0, max_new_tokens=NEW_TOKENS, seed=0)
    ours = [complete(decoder, [prompt], sampling, chat_format.stop_ids)[0].ids for prompt in prompts]

    def text(ids: list[int]) -> list[int]:
        """Remove the stop token, which genai leaves out."""
        return [id for id in ids if id not in chat_format.stop_ids]

    differs = False
    for name in REQUIREMENTS:
        theirs = run(name, options.folder, prompts, options.environments)
        same = sum(text(one) == text(other) for one, other in zip(theirs, ours, strict=True))
        print(f"{name}: {same} of {len(prompts)} prompts give the same greedy tokens, {sum(map(len, ours))} in all")
        differs |= same < len(prompts)
    return int(differs)


def run(name: str, folder: Path, prompts: list[list[int]], environments: Path) -> list[list[int]]:
    """Return the ids, up to `NEW_TOKENS`, that a loader generates greedily after each prompt."""
    script = Path(__file__).with_name(f"{name}.py")
    request = json.dumps({"prompts": prompts, "new_tokens": NEW_TOKENS})
    command = [interpreter(environments / name, REQUIREMENTS[name]), script, folder.resolve()]
    done = subprocess.run(command, input=request, stdout=subprocess.PIPE, text=True, check=True)
    generated: list[list[int]] = json.loads(done.stdout)
    return generated


if __name__ == "__main__":
    sys.exit(main())
