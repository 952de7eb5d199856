"""What each subcommand takes: arguments and their help, parsed but not looked into."""

from __future__ import annotations

import argparse

from mla_export import engine_arguments
from mla_export.argument_types import AMOUNT, COUNT, INDEX, contexts, integers, names, number


def _inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a checkpoint folder, a config.json, or a bundle")
    parser.add_argument(
        "--max-context",
        type=COUNT,
        metavar="N",
        help="context to fix; LongRoPE picks its factors by it (default: the model's own)",
    )


def _export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="folder with config.json and safetensors")
    parser.add_argument("out", help="the bundle to write, a folder")
    parser.add_argument(
        "--absorb",
        choices=["factored", "merged", "expanded"],
        default="factored",
        help="form of the attention; expanded is a baseline to compare with (default: %(default)s)",
    )
    parser.add_argument(
        "--target",
        choices=["portable", "ort-cpu"],
        default="portable",
        help="operators to write the graphs in: standard ones, or ONNX Runtime's for its CPU provider "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=["fp32", "fp16"],
        help="of activations, and of weights in floats (default: fp32, or what --weights says)",
    )
    parser.add_argument(
        "--weights",
        choices=["fp32", "fp16", "int8", "int4"],
        help="how matrices are stored (default: as --dtype)",
    )
    parser.add_argument(
        "--group",
        type=int,
        choices=[32, 128],
        help="inputs that share a scale (default: 32); int8 in standard ONNX has one an output",
    )
    parser.add_argument(
        "--head",
        choices=["int8", "int4"],
        help="how the output projection is stored beside int8 and int4 weights (default: int8)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FILE",
        help="round int8 and int4 weights for what this text, or .json of rows of token ids, feeds them with "
        "(default: each group of weights for itself)",
    )
    parser.add_argument(
        "--calibrate-tokens",
        type=number(int, 128, "a whole number of at least 128"),
        metavar="N",
        default=32768,
        help="tokens of it to use (default: %(default)s)",
    )
    parser.add_argument(
        "--cache",
        choices=["float", "int8"],
        default="float",
        help="latent rows of the cache: as --dtype, or int8 with a scale a token (default: %(default)s)",
    )
    parser.add_argument(
        "--cache-rope",
        choices=["float", "int8"],
        default="float",
        help="rotary keys of the cache: as --dtype, or int8 too (default: %(default)s)",
    )
    parser.add_argument(
        "--max-context", type=COUNT, metavar="N", help="longest context (default: the model's own)"
    )
    parser.add_argument(
        "--chunk",
        type=COUNT,
        metavar="N",
        help="most tokens of a prompt that run at once (default: 512, with "
        "--target ort-cpu 256, or the context if shorter)",
    )
    parser.add_argument("--force", action="store_true", help="replace a bundle that is already there")


def _verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="folder of the bundle")
    parser.add_argument(
        "--checkpoint",
        metavar="FOLDER",
        help="compare with the checkpoint that the bundle was made from (default: hashes and canary only)",
    )
    parser.add_argument(
        "--steps", type=COUNT, metavar="N", default=64, help="greedy steps to compare (default: %(default)s)"
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="text in UTF-8 on which to measure quality beside the checkpoint in fp32 (default: none)",
    )
    parser.add_argument(
        "--text-tokens", type=COUNT, metavar="N", help="how many of its tokens to read (default: all)"
    )
    parser.add_argument(
        "--max-kl",
        type=AMOUNT,
        metavar="X",
        help="fail if the mean KL divergence on the text is more, in nats (default: no limit)",
    )
    _backend(parser)


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="folders of bundles of one checkpoint")
    _sides(parser)
    parser.add_argument(
        "--steps",
        type=COUNT,
        metavar="N",
        default=64,
        help="tokens to decode after each prompt (default: %(default)s)",
    )
    parser.add_argument(
        "--bisect",
        action="store_true",
        help="go on inside the first layer that parts, operator by operator; takes --checkpoint",
    )


def _range(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="folder of a bundle in fp16")
    _said(parser)
    parser.add_argument(
        "--steps", type=COUNT, metavar="N", default=16, help="tokens after each prompt (default: %(default)s)"
    )


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="folder of the bundle")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="text to continue")
    prompt.add_argument("--chat", metavar="TEXT", help="message of a user, put into the chat template")
    prompt.add_argument("--ids", type=integers, help="token ids to continue, like 1,2,3")
    parser.add_argument(
        "--max-tokens", type=COUNT, metavar="N", default=128, help="most to decode (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature", type=AMOUNT, metavar="T", default=0, help="0 is greedy (default: %(default)s)"
    )
    parser.add_argument(
        "--top-k", type=INDEX, metavar="K", default=0, help="0 keeps all (default: %(default)s)"
    )
    parser.add_argument(
        "--top-p", type=AMOUNT, metavar="P", default=1, help="1 keeps all (default: %(default)s)"
    )
    parser.add_argument(
        "--min-p", type=AMOUNT, metavar="P", default=0, help="0 keeps all (default: %(default)s)"
    )
    parser.add_argument(
        "--repetition-penalty", type=AMOUNT, metavar="X", default=1, help="1 is none (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=INDEX,
        metavar="N",
        help="of sampling; the same seed gives the same text (default: any)",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="STR",
        help="end before this; repeatable (default: none)",
    )
    _backend(parser)
    engine_arguments.engines(parser)
    _threads(parser)


def _bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="folder of the bundle")
    parser.add_argument(
        "--depths", type=integers, help="tokens in the cache, like 0,2048 (default: those, if they fit)"
    )
    parser.add_argument(
        "--prompt", type=COUNT, metavar="N", help="prompt tokens to time (default: 512, if they fit)"
    )
    parser.add_argument("--steps", type=COUNT, metavar="N", help="steps to time (default: 32, if they fit)")
    _backend(parser)
    engine_arguments.engines(parser)
    _threads(parser)


def _cost(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a config.json, a checkpoint folder, or a bundle")
    parser.add_argument(
        "--device",
        type=names,
        metavar="NAME,…",
        default="all",
        help="devices of the table, like orin-nano-8gb,rtx-4090, or .json files of your own "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--context",
        type=contexts,
        metavar="N,…",
        help="tokens in the cache of a sequence, k being 1024 (default: 4k,32k,128k, as far as the model "
        "goes)",
    )
    parser.add_argument(
        "--batch", type=COUNT, metavar="N", default=1, help="sequences at once (default: %(default)s)"
    )
    parser.add_argument(
        "--chunk",
        type=COUNT,
        metavar="N",
        help="tokens of a prompt that run at once (default: a bundle's own, else 512)",
    )


def _compare_attention(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--like",
        metavar="MODEL",
        help="take the width of this checkpoint, config.json or bundle (default: DeepSeek-V2-Lite's)",
    )
    parser.add_argument(
        "--depths",
        type=contexts,
        default="1k,4k,16k",
        metavar="LIST",
        help="tokens in the cache, like 1k,4k,16k (default: %(default)s)",
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="measure the error of int8 rows on this text too, in every layer of the checkpoint MODEL "
        "(default: on random rows only)",
    )
    parser.add_argument("--svg", metavar="FILE", help="write the plot of step times here (default: none)")
    parser.add_argument("--force", action="store_true", help="replace a plot that is already there")
    parser.add_argument(
        "--backends",
        type=names,
        default="ort:cpu",
        metavar="NAMES",
        help="what runs the graphs, like ort:cpu (default: %(default)s)",
    )
    _threads(parser)


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundles", nargs="*", metavar="BUNDLE", help="folders of bundles of one checkpoint (default: --from)"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the page to write, like report.html")
    parser.add_argument(
        "--from",
        dest="results",
        nargs="+",
        metavar="JSON",
        help="draw what --json of compare, bench and inspect gave, here or elsewhere (default: measure now)",
    )
    _sides(parser)
    parser.add_argument(
        "--steps", type=COUNT, metavar="N", help="tokens to decode after each prompt (default: 64)"
    )
    parser.add_argument(
        "--depths",
        type=integers,
        help="tokens in the cache where speed is measured (default: 0,512,2048, as far as they fit)",
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is already there")


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", metavar="FOLDER", help="checkpoint to show (default: samples/tiny-mla)"
    )
    parser.add_argument(
        "--keep", metavar="FOLDER", help="keep the bundles here (default: they are removed at the end)"
    )


def _sides(parser: argparse.ArgumentParser) -> None:
    """Add what says which sides are compared, with what, on which tokens."""
    parser.add_argument(
        "--backends",
        type=names,
        metavar="NAMES",
        help="what runs them, like torch,ort:cpu; torch is the checkpoint in float32 itself (default: "
        "ort:cpu, and torch with a checkpoint)",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FOLDER",
        help="the reference: what the bundles were made from (default: the first bundle in fp32)",
    )
    _said(parser)


def _said(parser: argparse.ArgumentParser) -> None:
    """Add what is decoded."""
    said = parser.add_mutually_exclusive_group()
    said.add_argument(
        "--prompts",
        metavar="FILE",
        help="a prompt a line, or JSON of texts and rows of token ids (default: a few of its own)",
    )
    said.add_argument("--text", metavar="FILE", help="text in UTF-8 whose own tokens are forced")


def _backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", default="ort:cpu", help="what runs the graphs (default: %(default)s)")


def _threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=COUNT, metavar="N", help="of the backend (default: its own choice)")


COMMANDS = {
    "inspect": (_inspect, "geometry, parameters, cache bytes and what absorption costs"),
    "export": (_export, "write a checkpoint as an ONNX bundle with absorbed attention"),
    "build": (
        engine_arguments.build,
        "compile a bundle's TensorRT engines, for the card at hand or for named ones",
    ),
    "verify": (_verify, "hold a bundle against its hashes, its canary and its checkpoint"),
    "compare": (_compare, "hold bundles on backends against one reference, over a whole decode"),
    "range": (_range, "whether float16 holds what a bundle computes, node by node, and what rounding costs"),
    "run": (_run, "decode text with a bundle"),
    "bench": (_bench, "measure tokens a second, memory and cache bytes of a bundle"),
    "cost": (_cost, "what fits which device, and how fast it can be there at most"),
    "compare-attention": (_compare_attention, "measure MHA, GQA, MQA and MLA side by side at equal width"),
    "report": (_report, "write a comparison, speed, memory and cache bytes as one HTML page"),
    "selftest": (
        engine_arguments.selftest,
        "build engines, run, compare and time them here; two files to send back",
    ),
    "demo": (_demo, "all of it on a small model, telling what each step shows"),
}
