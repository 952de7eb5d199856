"""How tiny-mla is measured: bits a byte on the held-out text, the experts' load, functions that parse."""

from __future__ import annotations

import ast
import math
import re
import warnings
from contextlib import AbstractContextManager
from types import TracebackType

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from transformers import DeepseekV3ForCausalLM

FUNCTION_TOKENS = 384


class ExpertLoad(AbstractContextManager["ExpertLoad"]):
    """Counts, for each mixture layer, how many tokens went to each expert. `counts[i]` is [experts]."""

    def __init__(self, model: DeepseekV3ForCausalLM) -> None:
        self.gates = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
        self.counts = [torch.zeros(gate.num_experts) for gate in self.gates]

    def __enter__(self) -> ExpertLoad:
        self._hooks = [gate.register_forward_hook(self._count) for gate in self.gates]
        return self

    def _count(self, gate: torch.nn.Module, _: object, output: tuple[Tensor, Tensor, Tensor]) -> None:
        chosen = output[2].flatten()  # output is (logits, weights, indices [tokens, experts a token])
        self.counts[self.gates.index(gate)] += torch.bincount(chosen, minlength=gate.num_experts)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()


@torch.no_grad()
def held_out_nats(model: DeepseekV3ForCausalLM, ids: list[int], window: int) -> float:
    """Sum -ln p over `ids`, cut into windows that start anew from <|begin|> and see nothing before it."""
    begin = torch.tensor([model.config.bos_token_id])
    total = 0.0
    for chunk in torch.tensor(ids).split(window):
        logits = model(input_ids=torch.cat([begin, chunk[:-1]])[None], use_cache=False).logits[0]
        total += float(F.cross_entropy(logits.float(), chunk, reduction="sum"))
    return total


def held_out_figures(model: DeepseekV3ForCausalLM, tokenizer: Tokenizer, text: str) -> dict[str, float]:
    """Measure the loss a token, bits a byte at windows of 512 and 2048, and how even the experts' load is."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    figures: dict[str, float] = {"held_out_tokens": len(ids)}
    with ExpertLoad(model) as load:
        for window in (512, 2048):
            nats = held_out_nats(model, ids, window)
            figures[f"held_out_loss_{window}"] = nats / len(ids)
            figures[f"held_out_bits_per_byte_{window}"] = nats / math.log(2) / len(text.encode())
    counts = torch.stack(load.counts)  # [mixture layers, experts]
    loads = counts / counts.mean(-1, keepdim=True)
    figures["largest_expert_load_over_mean"] = float(loads.max())
    figures["smallest_expert_load_over_mean"] = float(loads.min())
    return figures


def first_function(source: str) -> str | None:
    """Cut the source before its second top-level statement; None where none follows: it is not finished."""
    following = re.search(r"\n(?=[^\s#)])", source)
    return source[: following.start()] if following else None


def parses(source: str) -> bool:
    """Ask Python's own parser."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an invalid escape in a sampled string is a warning, not our concern
        try:
            ast.parse(source)
        except (SyntaxError, ValueError):
            return False
    return True


@torch.no_grad()
def sample_functions(
    model: DeepseekV3ForCausalLM, tokenizer: Tokenizer, text: str, count: int, seed: int
) -> list[str]:
    """Continue `def name(`, each name a function of the held-out text, at temperature 0.7."""
    names = sorted(set(re.findall(r"^ *def (\w+)\(", text, re.M)))
    generator = torch.Generator().manual_seed(seed)
    chosen = [names[index] for index in torch.randperm(len(names), generator=generator)[:count]]
    prompts = [tokenizer.encode(f"\n\ndef {name}(").ids for name in chosen]
    longest = max(map(len, prompts))
    end = model.config.eos_token_id
    padded = torch.tensor([[end] * (longest - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    torch.manual_seed(seed)
    rows = model.generate(
        padded,
        attention_mask=mask,
        do_sample=True,
        temperature=0.7,
        top_k=0,
        top_p=1.0,
        max_new_tokens=FUNCTION_TOKENS,
        pad_token_id=end,
    )
    texts = []
    for ids, row in zip(prompts, rows.tolist(), strict=True):
        sampled = [*ids, *row[longest:]]
        if end in sampled:  # the file's end finishes a function as the next statement would
            texts.append(tokenizer.decode(sampled[: sampled.index(end)]).lstrip("\n") + "\npass")
        else:
            texts.append(tokenizer.decode(sampled).lstrip("\n"))
    return texts


def function_figures(functions: list[str]) -> dict[str, float]:
    """Compute shares of all samples; one that was not finished in `FUNCTION_TOKENS` counts as not parsing."""
    cut = [first_function(source) for source in functions]
    finished = [source for source in cut if source is not None]
    return {
        "functions_sampled": len(functions),
        "functions_finished": len(finished) / len(functions),
        "functions_that_parse": sum(map(parses, finished)) / len(functions),
    }
