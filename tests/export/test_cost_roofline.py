"""The roofline of steps and prompts: hand-computed for DeepSeek-V2-Lite, and what must hold of any."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_export import fitting, roofline
from mla_export.devices import Device, choose
from mla_export.estimate import all_formats
from mla_export.weight_bytes import Formats, cache_token_bytes, weight_bytes
from tests.export.test_cost_weights import FACTORED, published

V2_LITE = published("DeepSeek-V2-Lite")
FORMATS = all_formats("float16")
DEVICES = choose(["all"])


def device(bandwidth: float = 1e12, float_rate: float = 1e30, int8_rate: float | None = None) -> Device:
    memory, reserved = 24 * 2**30, 2**30
    return Device("it", "It", "gpu", memory, reserved, bandwidth, float_rate, int8_rate, {})


def test_a_step_reads_what_a_token_meets():
    experts = 26 * 64 * 3 * 2048 * 1408
    table = 102_400 * 2048
    always = 15_706_484_224 - experts - table  # the head among them, of the embedding one row
    by_hand = 2 * (always + experts * 6 / 64 + 2048) + 2 * 26 * 2048 * 64 + 4 * 64
    assert roofline.step_bytes(V2_LITE, FACTORED, 1) == pytest.approx(by_hand, rel=1e-12)
    cache = 27 * 576 * 2 * 32_769
    found = roofline.step_seconds(V2_LITE, FACTORED, device(), 1, 32_768)
    assert found == pytest.approx((by_hand + cache) / 1e12, rel=1e-12)


def test_a_tied_table_is_read_once_by_its_head():
    # all parameters once, and of the rotary tables a row of cos and one of sin
    assert roofline.step_bytes(published("MiniCPM3-4B"), FACTORED, 1) == 2 * 4_073_875_968 + 2 * 16 * 4


def test_operations_of_attention_in_each_form():
    pairs = 2 * 27 * 16 * 1000
    absorbed = roofline.attention_load(V2_LITE, FACTORED, 1, 1, 1000)
    assert absorbed.float_ops == pairs * (2 * 512 + 64)
    assert absorbed.int8_ops == 0
    int8 = Formats("merged", "int4", "int8", "float", "float16")
    load = roofline.attention_load(V2_LITE, int8, 1, 1, 1000)
    assert (load.int8_ops, load.float_ops) == (pairs * 2 * 512, pairs * 64)
    expanded = Formats("expanded", "float", "float", "float", "float16")
    assert roofline.attention_load(V2_LITE, expanded, 1, 1, 1000).float_ops == pairs * (128 + 64 + 128)


def test_operations_of_a_step():
    slow = device(bandwidth=1e30, float_rate=1e9, int8_rate=4e9)
    experts = 26 * 6 * 3 * 2048 * 1408
    attention = 27 * (2048 * 16 * 192 + 2048 * 576 + 16 * 512 * 256 + 16 * 128 * 2048)
    matrices = experts + 26 * (3 * 2048 * 2816 + 2048 * 64) + 3 * 2048 * 10_944 + attention + 102_400 * 2048
    rows = 27 * 16 * (2 * 512 + 64) * 101
    found = roofline.step_seconds(V2_LITE, FACTORED, slow, 1, 100)
    assert found == pytest.approx(2 * (matrices + rows) / 1e9, rel=1e-12)
    # integers at their own rate, where there is one
    int8 = Formats("factored", "int8", "int8", "int8", "float16")
    alone = roofline.step_seconds(V2_LITE, int8, dataclasses.replace(slow, int8_rate=None), 1, 100)
    assert alone == pytest.approx(found, rel=1e-12)
    assert roofline.step_seconds(V2_LITE, int8, slow, 1, 100) < found / 2


def test_experts_that_a_batch_chooses():
    assert roofline.distinct_experts(V2_LITE, 1) == 6
    assert roofline.distinct_experts(V2_LITE, 8) == pytest.approx(64 * (1 - (58 / 64) ** 8))
    assert roofline.distinct_experts(V2_LITE, 10_000) == pytest.approx(64)
    assert roofline.distinct_experts(published("MiniCPM3-4B"), 8) == 0
    growth = roofline.step_bytes(V2_LITE, FACTORED, 8) - roofline.step_bytes(V2_LITE, FACTORED, 1)
    more = 64 * (1 - (58 / 64) ** 8) - 6
    assert growth == pytest.approx(more * 26 * 3 * 2048 * 1408 * 2 + 7 * (2048 * 2 + 4 * 64), rel=1e-9)


def test_absorbed_beats_expanded_by_hand():
    expanded = dataclasses.replace(FACTORED, absorb="expanded")
    assert roofline.crossing(V2_LITE, FACTORED, expanded, device(), 1).words == "always"
    assert roofline.crossing(V2_LITE, expanded, FACTORED, device(), 1).words == "never"
    # in int8 W_UK and W_UV stay in floats, which keys' and values' own matrices do not
    int8 = dataclasses.replace(FACTORED, weights="int8")
    extra = 27 * 16 * 512 * 256 * (2 - (1 + 2 / 32))
    gain = 27 * (16 * 320 - 576) * 2
    found = roofline.crossing(V2_LITE, int8, dataclasses.replace(expanded, weights="int8"), device(), 1)
    assert (found.kind, found.context) == ("from", math.floor(extra / gain - 1) + 1)
    # where computing counts for more than reading, the expanded form has less of it
    slow = device(bandwidth=1e30, float_rate=1e9)
    assert roofline.crossing(V2_LITE, FACTORED, expanded, slow, 1).words == "never"


@pytest.mark.parametrize("form", ["factored", "merged"])
@pytest.mark.parametrize("weights", ["float", "int8", "int4"])
def test_a_crossing_is_where_the_steps_cross(form, weights):
    for it in (device(), device(bandwidth=5e10, float_rate=2.2e11), *DEVICES[:3]):
        pair = [Formats(f, weights, "float", "float", "float16") for f in (form, "expanded")]
        found = roofline.crossing(V2_LITE, *pair, it, 1)

        def shorter(context: int, pair: list[Formats] = pair, it: Device = it) -> bool:
            first, other = (roofline.step_seconds(V2_LITE, f, it, 1, context) for f in pair)
            return first < other

        last = V2_LITE.max_context
        expected = {
            "always": (True, True),
            "never": (False, False),
            "from": (False, True),
            "up to": (True, False),
        }
        assert (shorter(0), shorter(last)) == expected[found.kind]
        if found.kind == "from":
            assert found.context is not None
            assert (shorter(found.context - 1), shorter(found.context)) == (False, True)
        if found.kind == "up to":
            assert found.context is not None
            assert (shorter(found.context), shorter(found.context + 1)) == (True, False)


def test_workspace_by_hand():
    scores = 8 * 16 * 512 * 32_768
    keys = 16 * (192 + 128) * 32_768 * 2
    vectors = 512 * (2 * 2048 + 3 * 10_944) * 2
    logits = 4 * 102_400
    found = fitting.workspace_bytes(V2_LITE, FACTORED, 1, 32_768, 512)
    assert found == scores + keys + vectors + logits
    # 64 queries are fewer than make keys and values worth rebuilding
    assert fitting.workspace_bytes(V2_LITE, FACTORED, 1, 32_768, 64) == (scores + vectors) // 8 + logits


def test_a_prompt_is_quicker_where_keys_are_rebuilt():
    slow = device(bandwidth=1e30, float_rate=1e12)
    latent = dataclasses.replace(FACTORED, absorb="merged")
    rows = sum(range(512, 4097, 512))
    attending = 2 * 27 * 16 * rows * (512 * 256 + 512 * (128 + 64 + 128))
    chunk = roofline.weight_loads(V2_LITE, FACTORED, 512, 1)
    absorbing = 2 * 512 * 27 * 16 * 512 * 256
    others = roofline.seconds(chunk, slow) - absorbing / 1e12
    found = roofline.prompt_seconds(V2_LITE, FACTORED, slow, 1, 4096, 512)
    assert found == pytest.approx(8 * others + attending / 1e12, rel=1e-9)
    assert found < roofline.prompt_seconds(V2_LITE, latent, slow, 1, 4096, 512)


def test_a_prompt_in_one_token_is_a_step():
    for formats in FORMATS:
        step = roofline.step_seconds(V2_LITE, formats, device(), 2, 0)
        assert roofline.prompt_seconds(V2_LITE, formats, device(), 2, 1, 1) == pytest.approx(step, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    formats=st.sampled_from(FORMATS),
    it=st.sampled_from(DEVICES),
    context=st.integers(1, 163_000),
    batch=st.integers(1, 32),
)
def test_more_takes_longer_and_better_devices_do_not(formats, it, context, batch):
    def step(it: Device = it, batch: int = batch, context: int = context) -> float:
        return roofline.step_seconds(V2_LITE, formats, it, batch, context)

    assert step() <= step(context=context + 500)
    assert step() < step(batch=batch + 1)
    assert step() / batch >= step(batch=batch + 1) / (batch + 1) * (1 - 1e-12)
    faster = dataclasses.replace(it, bandwidth=2 * it.bandwidth, float_rate=2 * it.float_rate)
    assert step(it=faster) <= step()
    needed = [fitting.needed_bytes(V2_LITE, formats, batch, n, 512) for n in (context, context + 1)]
    assert needed[0] < needed[1]


@pytest.mark.parametrize("formats", FORMATS, ids=lambda f: f"{f.absorb}-{f.words}")
def test_the_longest_context_fits_and_the_next_does_not(formats: Formats):
    for it in DEVICES:
        longest = fitting.longest_context(V2_LITE, formats, it, 1, 512)
        if longest:
            assert fitting.needed_bytes(V2_LITE, formats, 1, longest, 512) <= it.usable
        if longest < V2_LITE.max_context:
            assert fitting.needed_bytes(V2_LITE, formats, 1, longest + 1, 512) > it.usable


def test_needed_is_the_sum():
    found = fitting.needed_bytes(V2_LITE, FACTORED, 4, 1000, 128)
    cache = 4 * 1000 * cache_token_bytes(V2_LITE, FACTORED)
    work = fitting.workspace_bytes(V2_LITE, FACTORED, 4, 1000, 128)
    assert found == weight_bytes(V2_LITE, FACTORED) + cache + work
