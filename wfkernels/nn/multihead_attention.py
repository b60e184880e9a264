"""`torch.nn.MultiheadAttention` with a learned bias or gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from wfkernels import check
from wfkernels.attention import nested
from wfkernels.attention.api import attention
from wfkernels.attention.dense import weights
from wfkernels.nn import mha_checks
from wfkernels.nn.relative_position import RelativePositionBias
from wfkernels.nn.terms import Term, Terms

OP = mha_checks.OP


class MultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention`, computed by `wfkernels.attention`, and with a learned bias or gate on request.

    The arguments up to `dtype`, the parameters, their names, shapes and first values are torch's, so that state dicts
    load in both directions; see there for their meaning. What differs:

    * a query that may see no key gets the bias of `out_proj`, where torch gives NaN with need_weights=True;
    * is_causal needs no attn_mask, and together with one both hold (torch takes the one for a hint about the other);
    * mixed bool and float masks are no matter for a warning; dropout=1 is refused;
    * query, key and value may be nested (torch.jagged [N, j, E]), also in training; see `forward`.

    Args:
        attn_bias: added to the scores: an `nn.Module` that returns what `wfkernels.attention` takes as a bias when it
            is called without arguments (`RelativePositionBias`; several layers may hold the same one), or an
            `nn.Parameter` [H or 1, M, M]. Of a tensor that is larger than a call needs, the top-left corner counts.
        attn_gate: multiplies the exponentials of the scores, values in [0, 1], likewise. Its gradient exists at 0 too.

    Raises:
        TypeError, ValueError: sizes that do not fit, or a bias or gate of another kind.

    >>> layer = wfkernels.nn.MultiheadAttention(64, 4, attn_bias=wfkernels.nn.RelativePositionBias.t5(4))
    """

    attn_bias: nn.Module | nn.Parameter | None
    attn_gate: nn.Module | nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        attn_bias: nn.Module | nn.Parameter | None = None,
        attn_gate: nn.Module | nn.Parameter | None = None,
    ) -> None:
        mha_checks.sizes(embed_dim, num_heads, dropout, kdim, vdim)
        for name, held in (("attn_bias", attn_bias), ("attn_gate", attn_gate)):
            mha_checks.held(name, held, num_heads)
        super().__init__(
            embed_dim,
            num_heads,
            dropout,
            bias,
            add_bias_kv,
            add_zero_attn,
            kdim,
            vdim,
            batch_first,
            device,
            dtype,
        )
        self.attn_bias, self.attn_gate = attn_bias, attn_gate

    def _reset_parameters(self) -> None:
        # Where this is set, torch.nn.TransformerEncoderLayer computes attention without calling its module, and would
        # leave bias and gate out. Torch's initialisation asks for it too.
        self._qkv_same_embed_dim = self.in_proj_weight is not None
        super()._reset_parameters()
        self._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,  # [L, N, E], batch_first [N, L, E], unbatched [L, E], or nested [N, j, E]
        key: Tensor,  # [S, N, kdim], [N, S, kdim], [S, kdim], or nested
        value: Tensor,  # [S, N, vdim], [N, S, vdim], [S, vdim], or nested
        key_padding_mask: Tensor | None = None,  # [N, S], unbatched [S]
        need_weights: bool = True,
        attn_mask: Tensor | None = None,  # [L, S] or [N * H, L, S]
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        attn_bias: Term = None,  # broadcasts to [N, H, L, S], or a table
        attn_gate: Term = None,  # likewise
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention of torch's module, and with need_weights its weights.

        Args:
            key_padding_mask, attn_mask: bool, True where a key or pair is left out; or floating, added to the scores,
                with gradient.
            need_weights: also return the weights [N, L, S], or [N, H, L, S] without average_attn_weights, unbatched
                without N, with dropout applied and with gradient. That builds L x S tensors, which nothing else here
                does: say False unless they are looked at.
            is_causal: query i sees keys j <= i, and those that add_bias_kv and add_zero_attn add.
            attn_bias, attn_gate: of this call, on top of what the module holds.

        Nested: returns nested, (out, None); needs need_weights=False and takes no masks (sequences have their own
        lengths), no keys added by add_bias_kv or add_zero_attn, and no tensors of the call.

        Raises:
            TypeError, ValueError: a shape, dtype or combination that does not fit.
        """
        check.flag(OP, "need_weights", need_weights)
        check.flag(OP, "average_attn_weights", average_attn_weights)
        check.flag(OP, "is_causal", is_causal)
        if nested.is_nested(query, key, value):
            given = {
                "key_padding_mask": key_padding_mask,
                "attn_mask": attn_mask,
                "attn_bias": attn_bias,
                "attn_gate": attn_gate,
            }
            mha_checks.jagged(self, query, key, value, need_weights, given)
            return self._nested(query, key, value, is_causal), None
        batched = mha_checks.tokens(self, query, key, value)
        q, k, v = (self._by_head(x, batched) for x in self._projected(query, key, value))
        terms = self._terms(q, k, (attn_bias, attn_gate), (key_padding_mask, attn_mask), batched)
        keys = k.shape[-2]
        k, v = self._more_keys(k, v)
        extra = k.shape[-2] - keys
        if extra and is_causal:
            # The keys added stand behind the others, but everybody sees them.
            below = torch.ones(q.shape[-2], keys, dtype=torch.bool, device=q.device).tril()
            terms, is_causal = terms.allow(below, q.dtype), False
        terms = terms.widen(extra)

        dropout_p = self.dropout if self.training else 0.0
        seed = check.dropout(OP, dropout_p, None, q.device)
        out, lse = attention(
            q,
            k,
            v,
            bias=terms.bias,
            gate=terms.gate,
            is_causal=is_causal,
            dropout_p=dropout_p,
            seed=seed,
            return_lse=True,
        )
        out = self.out_proj(self._joined(out, batched))
        if not need_weights:
            return out, None
        found = weights(q, k, lse, terms.bias, terms.gate, is_causal=is_causal, dropout_p=dropout_p, seed=seed)
        found = found.mean(1) if average_attn_weights else found
        return out, found if batched else found.squeeze(0)

    def _terms(
        self,
        query: Tensor,  # [N, H, L, D]
        key: Tensor,  # [N, H, S, D]
        called: tuple[Term, Term],
        masks: tuple[Tensor | None, Tensor | None],
        batched: bool,
    ) -> Terms:
        """Return all that bears on the scores: what the module has learned, the call's own bias and gate, masks."""
        batch, heads, queries, _ = query.shape
        keys = key.shape[-2]
        biases, gates = (
            (_corner(held, queries, keys), own)
            for held, own in zip((self.attn_bias, self.attn_gate), called, strict=True)
        )
        named = [*(("attn_bias", bias) for bias in biases), *(("attn_gate", gate) for gate in gates)]
        mha_checks.terms(query, key, named)
        mha_checks.masks(query, key, *masks, batched)
        terms = Terms(queries, keys)
        for bias, gate in zip(biases, gates, strict=True):
            terms = terms.add(bias).multiply(gate)
        padding, mask = masks
        if padding is not None:
            padding = padding.reshape(batch, 1, 1, keys)
        if mask is not None and mask.ndim == 3:
            mask = mask.unflatten(0, (batch, heads))
        return terms.mask(padding, mask, dtype=query.dtype)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value times their weights, [..., E] each."""
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        if self.in_proj_weight is not None:
            if query is key and key is value:
                q, k, v = linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
                return q, k, v
            matrices = self.in_proj_weight.chunk(3)
        else:
            matrices = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        q, k, v = (linear(x, w, b) for x, w, b in zip((query, key, value), matrices, biases, strict=True))
        return q, k, v

    def _by_head(self, x: Tensor, batched: bool) -> Tensor:
        """Return [N, H, S, D] of projected tokens [S, N, E], batch_first [N, S, E] or unbatched [S, E], as a view."""
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        if not batched:
            return x.transpose(0, 1).unsqueeze(0)
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _joined(self, out: Tensor, batched: bool) -> Tensor:
        """Return the tokens of [N, H, L, D] in the order of the input."""
        if not batched:
            return out.squeeze(0).transpose(0, 1).flatten(-2)
        return (out.transpose(1, 2) if self.batch_first else out.permute(2, 0, 1, 3)).flatten(-2)

    def _more_keys(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return [N, H, S, D] with the learned key and value and the zeros that were asked for behind them."""
        parts = [(key, value)]
        if self.bias_k is not None and self.bias_v is not None:
            # [1, 1, E] reads the same in either order of batch and tokens.
            k, v = (self._by_head(x, True).expand(key.shape[0], -1, -1, -1) for x in (self.bias_k, self.bias_v))
            parts.append((k, v))
        if self.add_zero_attn:
            zeros = key.new_zeros(*key.shape[:2], 1, key.shape[-1])
            parts.append((zeros, zeros))
        if len(parts) == 1:
            return key, value
        return torch.cat([k for k, _ in parts], -2), torch.cat([v for _, v in parts], -2)

    def _nested(self, query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
        """Return the attention of jagged tokens [N, j, E]."""
        size = (self.num_heads, self.head_dim)
        q, k, v = (x.unflatten(-1, size) for x in self._projected(query, key, value))
        bias, gate = (
            # A window's integers are one per token of the whole batch in a ragged call.
            held(query.shape[0]) if isinstance(held, RelativePositionBias) else _called(held)
            for held in (self.attn_bias, self.attn_gate)
        )
        dropout_p = self.dropout if self.training else 0.0
        out = attention(q, k, v, bias=bias, gate=gate, is_causal=is_causal, dropout_p=dropout_p)
        joined: Tensor = self.out_proj(out.flatten(-2))
        return joined


def _called(held: nn.Module | nn.Parameter | None) -> Term:
    """Return the bias or gate that a module holds."""
    if isinstance(held, nn.Module):
        term: Term = held()
        return term
    return held


def _corner(held: nn.Module | nn.Parameter | None, queries: int, keys: int) -> Term:
    """Return the bias or gate that a module holds, for a dense call of so many queries and keys."""
    term = _called(held)
    return term[..., :queries, :keys] if isinstance(term, Tensor) else term
