"""Trains samples/tiny-mla: a deepseek_v3 model of 3.5 M parameters, on the library of this Python.

    python samples/train_tiny.py

The geometry is samples/tiny-mla/config.json; the class that is trained is Hugging Face's own. Needs torch,
transformers, tokenizers and safetensors; no GPU, no network. A run that was stopped goes on from its last
saved state when it is started again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from tiny_eval import ExpertLoad, function_figures, held_out_figures, sample_functions
from tiny_muon import Muon
from tiny_ngram import bits_per_byte
from tiny_ngram import train as train_ngrams
from tiny_text import encode_files, library_files, pick_held_out, train_tokenizer, without
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, DeepseekV3ForCausalLM

TARGET = Path(__file__).parent / "tiny-mla"
NGRAM_ORDERS = (5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides what comes out, but for the text and the versions."""

    steps: int
    seed: int
    tokens_per_step: int = 4096
    window: int = 512
    long_window: int = (
        2048  # for the last steps, so that positions beyond YaRN's original 512 are trained too
    )
    long_share: float = 0.1
    warmup_steps: int = 40
    decay_share: float = 0.34  # warm-up, then constant, then linearly to zero
    matrix_lr: float = 0.01
    other_lr: float = 0.004
    bias_rate: float = 0.002  # DeepSeek-V3's gamma, its step of the load-balancing bias

    def window_at(self, step: int) -> int:
        """Choose the tokens in a window."""
        return self.long_window if step >= self.steps * (1 - self.long_share) else self.window

    def rate_at(self, step: int) -> float:
        """Scale the learning rates, 0 to 1."""
        left = (self.steps - step) / (self.steps * self.decay_share)
        return min(1.0, (step + 1) / self.warmup_steps, left)


def padded_attention(
    _: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    **__: object,
) -> tuple[Tensor, None]:
    """Attend with [B, heads, S, 48] queries and keys and [B, heads, S, 32] values.

    PyTorch's fast CPU kernel wants one width, so the values are padded with zeros; without that a training
    step takes 1.5 times as long.
    """
    if mask is not None:
        raise ValueError("training windows have no padding, so no mask was expected")
    width = value.shape[-1]
    wide = F.pad(value, (0, query.shape[-1] - width))
    output = F.scaled_dot_product_attention(query, key, wide, is_causal=True, scale=scaling)[..., :width]
    return output.transpose(1, 2), None  # [B, S, heads, 32]


def new_model(seed: int) -> DeepseekV3ForCausalLM:
    """Draw random weights, float32. The experts run one by one ("eager"), the fastest way on a CPU."""
    torch.manual_seed(seed)
    AttentionInterface.register("padded_sdpa", padded_attention)
    config = AutoConfig.from_pretrained(
        TARGET, attn_implementation="padded_sdpa", experts_implementation="eager"
    )
    return DeepseekV3ForCausalLM(config).float()


def optimizers(model: DeepseekV3ForCausalLM, plan: Plan) -> list[torch.optim.Optimizer]:
    """Give Muon to the matrices inside the layers; AdamW to norms, router, embedding and head."""
    matrices, others = [], []
    for name, param in model.named_parameters():
        inside = ".layers." in name and param.ndim >= 2 and not name.endswith("mlp.gate.weight")
        (matrices if inside else others).append(param)
    made = [
        Muon(matrices, lr=plan.matrix_lr),
        torch.optim.AdamW(others, lr=plan.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for group in (group for optimizer in made for group in optimizer.param_groups):
        group["peak"] = group["lr"]
    return made


def batch(stream: Tensor, plan: Plan, step: int, begin: int) -> tuple[Tensor, Tensor]:
    """Cut inputs and targets, both [B, S]. Every window starts with <|begin|>, wherever in a file it is.

    The k-th window starts at the fractional part of k times the golden ratio, which spreads any number of
    windows evenly over the text and needs no state that a restart would have to restore.
    """
    window = plan.window_at(step)
    rows = plan.tokens_per_step // window
    starts = [
        int((step * rows + row) * 0.6180339887498949 % 1 * (len(stream) - window)) for row in range(rows)
    ]
    targets = torch.stack([stream[start : start + window] for start in starts]).long()
    return F.pad(targets[:, :-1], (1, 0), value=begin), targets


def balance(load: ExpertLoad, rate: float) -> None:
    """Balance the experts' load without an auxiliary loss (DeepSeek-V3, section 2.1.2).

    The bias, which chooses experts but weighs none, rises for those below the mean load and falls for others.
    """
    for gate, count in zip(load.gates, load.counts, strict=True):
        gate.e_score_correction_bias += rate * torch.sign(count.mean() - count)
        count.zero_()


def train_step(
    model: DeepseekV3ForCausalLM,
    made: list[torch.optim.Optimizer],
    load: ExpertLoad,
    plan: Plan,
    step: int,
    stream: Tensor,
) -> float:
    """Make one step and return its loss in nats a token."""
    inputs, targets = batch(stream, plan, step, model.config.bos_token_id)
    logits = model(input_ids=inputs, use_cache=False).logits  # [B, S, V]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    rate = plan.rate_at(step)
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        optimizer.step()
        optimizer.zero_grad()
    balance(load, plan.bias_rate * rate)
    return loss.item()


@dataclass(slots=True)
class Run:
    """A model under way, and the file that it can be continued from."""

    model: DeepseekV3ForCausalLM
    optimizers: list[torch.optim.Optimizer]
    state_file: Path
    identity: dict[str, object]  # the plan and the text's hash: a state of another run is not continued
    step: int = 0
    seconds: float = 0.0

    def save(self) -> None:
        """Write the state, whole or not at all."""
        state = {
            "identity": self.identity,
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        self.state_file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.state_file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.state_file)

    def resume(self) -> None:
        """Go on from the saved state, if there is one."""
        if not self.state_file.exists():
            return
        state = torch.load(self.state_file, weights_only=True)
        if state["identity"] != self.identity:
            raise SystemExit(
                f"{self.state_file} belongs to another plan or text; delete it, or give another --state"
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]


def train(run: Run, plan: Plan, stream: Tensor, save_every: float) -> Iterator[None]:
    """Train to the plan's end, and yield whenever a state was saved."""
    losses: list[float] = []
    last_save = last_tick = time.monotonic()
    with ExpertLoad(run.model) as load:
        while run.step < plan.steps:
            losses.append(train_step(run.model, run.optimizers, load, plan, run.step, stream))
            run.step += 1
            now = time.monotonic()
            run.seconds, last_tick = run.seconds + now - last_tick, now
            if run.step % 20 == 0:
                mean, losses = sum(losses) / len(losses), []
                print(f"step {run.step}/{plan.steps}  loss {mean:.3f}  {run.seconds:.0f} s", flush=True)
            if now - last_save > save_every or run.step == plan.steps:
                run.save()
                last_save = now
                yield


def publish(model: DeepseekV3ForCausalLM, tokenizer: Tokenizer) -> None:
    """Write tokenizer.json, and model.safetensors under the tensor names that DeepSeek's checkpoints have.

    The weights are rounded to bfloat16; the router's bias stays float32.
    """
    rounded = deepcopy(model).to(torch.bfloat16)
    for name, exact in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            rounded.get_buffer(name).data = exact.clone()
    with tempfile.TemporaryDirectory(dir=TARGET.parent) as folder:
        rounded.save_pretrained(folder)
        tokenizer.save(f"{folder}/tokenizer.json")
        for name in ("tokenizer.json", "model.safetensors"):
            written = Path(folder, name)
            written.chmod(0o644)
            written.replace(TARGET / name)


def published_model() -> DeepseekV3ForCausalLM:
    """Load what a user loads: rounded weights, computed in float32. No key may be missing or left over."""
    model, info = DeepseekV3ForCausalLM.from_pretrained(TARGET, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise SystemExit(
            f"{TARGET} does not load: missing {info['missing_keys']}, left {info['unexpected_keys']}"
        )
    return model.eval()


def measure(
    tokenizer: Tokenizer, held_out: str, files: list[str], functions: int, seed: int
) -> dict[str, object]:
    """Take every quality figure of the README from the published files."""
    model = published_model()
    training_bytes = "".join(files).encode()
    ngrams = {
        order: bits_per_byte(train_ngrams(training_bytes, order), held_out.encode()) for order in NGRAM_ORDERS
    }
    return {
        "parameters": model.num_parameters(),
        **held_out_figures(model, tokenizer, held_out),
        "ngram_bits_per_byte": ngrams,
        **function_figures(sample_functions(model, tokenizer, held_out, functions, seed)),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train samples/tiny-mla again.")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--functions", type=int, default=200, help="how many functions to sample at the end")
    parser.add_argument(
        "--save-minutes", type=float, default=3.0, help="how often to save and publish on the way"
    )
    parser.add_argument("--state", type=Path, default=Path("build/train_tiny/state.pt"))
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    plan = Plan(steps=args.steps, seed=args.seed)

    held_out_file = TARGET / "held_out.txt"
    library = library_files()
    if not held_out_file.exists():
        held_out_file.write_bytes(pick_held_out(library).encode())
    held_out = held_out_file.read_bytes().decode()
    files = without(library, held_out)
    model = new_model(plan.seed)
    tokenizer = train_tokenizer(files, model.config.vocab_size)
    stream = torch.tensor(encode_files(tokenizer, files), dtype=torch.int16)
    text_hash = hashlib.sha256(stream.numpy().tobytes()).hexdigest()
    print(f"{len(files)} of {len(library)} files, {len(stream)} tokens", flush=True)

    run = Run(model, optimizers(model, plan), args.state, {"plan": repr(plan), "text": text_hash})
    run.resume()
    for _ in train(run, plan, stream, 60 * args.save_minutes):
        publish(model, tokenizer)

    figures = {
        "command": f"python samples/train_tiny.py --steps {plan.steps} --seed {plan.seed}",
        "plan": {name: getattr(plan, name) for name in Plan.__slots__},
        "training_seconds": round(run.seconds),
        "threads": args.threads,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "training_files": len(files),
        "training_bytes": sum(len(text.encode()) for text in files),
        "training_tokens": len(stream),
        "tokens_seen": plan.steps * plan.tokens_per_step,
        "held_out_bytes": len(held_out.encode()),
        "held_out_sha256": hashlib.sha256(held_out.encode()).hexdigest(),
        **measure(tokenizer, held_out, files, args.functions, plan.seed),
        "model_sha256": hashlib.sha256((TARGET / "model.safetensors").read_bytes()).hexdigest(),
    }
    (TARGET / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    args.state.unlink()


if __name__ == "__main__":
    main()
