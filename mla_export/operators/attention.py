"""What a query sees, and attention in the latent space, over rebuilt keys and values, and a head at a time.

Past and new rows are attended to apart and joined as scores; the parts of a context are rounded before they
are added, as in the graphs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mla_export.operators.arithmetic import Arithmetic, Call
from mla_export.operators.codes import Stored


def _visibility(call: Call) -> list[Tensor]:
    ids, past_lengths, new_lengths, past = (call.given(i) for i in range(4))
    batch, queries = ids.shape
    rows, heads = past.shape[1], call.integer("heads")
    new = torch.arange(queries)
    in_past = (torch.arange(rows) < past_lengths[:, None])[:, None].expand(batch, queries, rows)
    counts = new < new_lengths[:, None]  # [B,S]
    in_new = counts[:, None] & (new <= new[:, None])  # [B,S,S]
    return [
        torch.cat((in_past, in_new), dim=2)[:, None],  # [B,1,S,T+S]
        counts.flatten(),
        torch.tensor([rows]),
        torch.tensor([batch, heads * queries, -1]),
        torch.tensor([batch, heads, queries, -1]),
    ]


@dataclass(frozen=True, slots=True)
class Rows:
    """What is attended to: the past rows and the new rows of latent and rope, and who sees them.

    visible is [B,1,S,T+S].
    """

    past_latent: Stored
    past_rope: Stored
    latent: Stored
    rope: Stored
    visible: Tensor

    @classmethod
    def of(cls, call: Call, rows: int, visible: int, scales: int) -> Rows:
        """Take rows from input `rows` on, `visible`, and scales from input `scales` on."""
        return cls(
            past_latent=Stored.of(call, rows, scales),
            past_rope=Stored.of(call, rows + 1, scales + 2),
            latent=Stored.of(call, rows + 2, scales + 1),
            rope=Stored.of(call, rows + 3, scales + 3),
            visible=call.given(visible),
        )


def _attend_to_latent(rows: Rows, q_latent: Tensor, q_rope: Tensor, scale: float, a: Arithmetic) -> Tensor:
    """From q_latent [B,H,S,C] and q_rope [B,H,S,R] give the context [B,H,S,C]."""

    def scores(latent: Stored, rope: Stored) -> Tensor:
        return latent.scores(q_latent, scale, a) + rope.scores(q_rope, scale, a)

    joined = torch.cat((scores(rows.past_latent, rows.past_rope), scores(rows.latent, rows.rope)), dim=-1)
    probabilities = a.softmax(joined, rows.visible)
    if rows.latent.scale is None:  # else scales are folded into them first
        probabilities = probabilities.to(a.real)
    past = rows.past_latent.rows.shape[1]
    of_past = rows.past_latent.context(probabilities[..., :past], rows.visible[..., :past], a)
    return of_past + rows.latent.context(probabilities[..., past:], rows.visible[..., past:], a)


def _latent_attention(call: Call) -> list[Tensor]:
    rows = Rows.of(call, 2, 6, 10)
    return [_attend_to_latent(rows, call.real(0), call.real(1), call.number("scale"), call.arithmetic)]


def _prompt_attention(call: Call) -> list[Tensor]:
    a, scale = call.arithmetic, call.number("scale")
    rows = Rows.of(call, 2, 8, 12)
    q_nope, q_rope, w_uk, w_uv = call.real(0), call.real(1), call.real(6), call.real(7)
    if _is_less_work_in_the_latent_space(q_nope.shape[2], w_uk.shape[2], w_uk.shape[1] + w_uv.shape[2]):
        context = _attend_to_latent(rows, a.matmul(q_nope, w_uk), q_rope, scale, a)
        return [a.matmul(context, w_uv)]
    latent = torch.cat([part.values(a) for part in (rows.past_latent, rows.latent)], dim=1)[:, None]
    rope = torch.cat([part.values(a) for part in (rows.past_rope, rows.rope)], dim=1)[:, None]
    keys = torch.cat((a.matmul(latent, w_uk.mT), rope.expand(-1, w_uk.shape[0], -1, -1)), dim=-1)
    query = torch.cat((q_nope, q_rope), dim=-1) * a.number(scale)
    probabilities = a.softmax(a.matmul(query, keys.mT), rows.visible).to(a.real)
    return [a.mix(probabilities, a.matmul(latent, w_uv), rows.visible)]


def _is_less_work_in_the_latent_space(queries: int, latent: int, head: int) -> bool:
    """Compare multiplications a head and row: 2C for each query, or C(P+D) once and P+D for each.

    `head` is P + D. The number of queries from which rebuilding is chosen is a whole number, rounded down.
    """
    return 2 * latent <= head or queries < latent * head // (2 * latent - head)


def _head_attention(call: Call) -> list[Tensor]:
    a, visible = call.arithmetic, call.given(5)
    past_key, past_value, key, value = (call.real(i).transpose(1, 2) for i in range(1, 5))  # [B,H,T|S,·]
    query = call.real(0) * a.number(call.number("scale"))
    scores = torch.cat((a.matmul(query, past_key.mT), a.matmul(query, key.mT)), dim=-1)
    probabilities = a.softmax(scores, visible).to(a.real)
    past = past_key.shape[2]
    of_past = a.mix(probabilities[..., :past], past_value, visible[..., :past])
    return [of_past + a.mix(probabilities[..., past:], value, visible[..., past:])]


def _grouped_attention(call: Call) -> list[Tensor]:
    a, scale, groups = call.arithmetic, call.number("scale"), call.integer("groups")
    batch, heads, queries, width = call.real(0).shape
    query = call.real(0).reshape(batch * groups, heads // groups, queries, width)
    visible = call.given(5).repeat_interleave(groups, dim=0)  # [B·G,1,S,T+S]
    past_key, past_value, key, value = (Stored.of(call, 1 + i, 7 + i) for i in range(4))
    scores = torch.cat((past_key.scores(query, scale, a), key.scores(query, scale, a)), dim=-1)
    probabilities = a.softmax(scores, visible)
    if key.scale is None:  # else scales are folded into them first
        probabilities = probabilities.to(a.real)
    past = past_key.rows.shape[1]
    found = past_value.context(probabilities[..., :past], visible[..., :past], a)
    found = found + value.context(probabilities[..., past:], visible[..., past:], a)
    return [found.reshape(batch, heads, queries, -1)]


def _head_keys(call: Call) -> list[Tensor]:
    x = call.real(0)
    nope = x.reshape(*x.shape[:2], call.integer("heads"), -1)  # [B,S,H,P]
    rope = call.real(1)[:, :, None].expand(-1, -1, nope.shape[2], -1)
    return [torch.cat((nope, rope), dim=-1)]


RULES = {
    "Visibility": _visibility,
    "LatentAttention": _latent_attention,
    "PromptAttention": _prompt_attention,
    "HeadAttention": _head_attention,
    "GroupedAttention": _grouped_attention,
    "HeadKeys": _head_keys,
}
