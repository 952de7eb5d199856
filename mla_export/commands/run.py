"""`mla-export run`: decode with a bundle and stream the text as it comes."""

from __future__ import annotations

import argparse
import sys
import time

from mla_export.commands.opening import open_model
from mla_export.commands.tables import print_json
from mla_export.extras import not_installed
from mla_runtime import Model, Sampling, Stream
from mla_runtime.errors import InputError
from mla_runtime.wording import counted


def run(args: argparse.Namespace) -> int:
    """Continue the prompt that `args` gives; text on stdout, or ids where there is no tokenizer."""
    sampling = Sampling(
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
    )
    with open_model(args) as model:
        prompt = _prompt(args, model)
        with model.generate(prompt, max_tokens=args.max_tokens, sampling=sampling, stop=args.stop) as stream:
            if model.bundle.text.tokenizer is not None and not stream.in_words and not args.quiet:
                sys.stderr.write(f"ids are shown: {not_installed(['tokenizers'])}\n")
            if args.json:
                timing = _follow(stream, None)
                print_json(
                    {
                        "prompt_ids": prompt,
                        "ids": stream.ids,
                        "text": stream.text if stream.in_words else None,
                        "reason": stream.reason,
                        **timing,
                    }
                )
                return 0
            if args.prompt is not None:
                _write(args.prompt)
            timing = _follow(stream, "text" if stream.in_words else "ids")
            _write("\n")
    if not args.quiet:
        sys.stderr.write(_summary(len(prompt), stream, timing) + "\n")
    return 0


def _prompt(args: argparse.Namespace, model: Model) -> list[int]:
    if args.ids is not None:
        ids: list[int] = args.ids
        return ids
    if model.text is None:
        raise InputError(f"{args.bundle}: the bundle has no tokenizer; give the prompt with --ids 1,2,3")
    if args.chat is not None:
        return model.text.chat([{"role": "user", "content": args.chat}])
    return model.text.encode(args.prompt)


def _follow(stream: Stream, shown: str | None) -> dict[str, float]:
    """Take every token, show it as `text` or `ids`, and time the prompt apart from the steps."""
    start = time.perf_counter()
    first = start
    for number, token in enumerate(stream):
        if number == 0:
            first = time.perf_counter()
        if shown == "text":
            _write(token.text)
        elif shown == "ids":
            _write(f"{',' if number else ''}{token.id}")
    end = time.perf_counter()
    return {"prompt_seconds": first - start, "step_seconds": end - first}


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _summary(prompt_tokens: int, stream: Stream, timing: dict[str, float]) -> str:
    steps = len(stream.ids) - 1
    parts = [f"prompt {counted(prompt_tokens, 'token')} in {timing['prompt_seconds']:.3f} s"]
    if steps > 0 and timing["step_seconds"] > 0:
        parts.append(f"{counted(steps, 'step')} at {steps / timing['step_seconds']:.0f} tokens/s")
    parts.append(f"ended: {stream.reason}")
    return "; ".join(parts)
