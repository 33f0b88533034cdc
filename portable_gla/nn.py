"""The layer: projections, a low-rank gate, :func:`portable_gla.attention`, a per-head norm and an output gate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from portable_gla.api import attention, decode_

GATES = ("channel", "head")


class GatedLinearAttention(nn.Module):
    """A gated linear attention layer, a drop-in for self-attention that streams with a state of fixed size.

    ::

        q, k, v = W_q x, W_k x, W_v x                        one row per head
        g = logsigmoid(W_2 W_1 x + b) / gate_normalizer      in float32
        o = attention(q, k, v, g)
        y = W_o (rms_norm(o) · silu(W_r x))                  the norm runs over each head's V channels

    Source: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training" (2023), section 4.4;
    ``gate="head"`` is the gate of Mamba-2, ``bonus`` that of RWKV-6.

    Parameters
    ----------
    hidden_size
        D, the width of x and y.
    num_heads
        H: heads of the queries, of the gate and of the state.
    num_kv_heads
        Heads of keys and values, a divisor of ``num_heads``; H // num_kv_heads neighbouring heads share one, each
        with its own decay. Default: ``num_heads``.
    expand_k, expand_v
        Width of all H heads' queries, and values, relative to D. Defaults: 0.5 and 1.
    key_dim, value_dim
        The same as numbers of channels, H · K and H · V; they take the place of ``expand_k`` and ``expand_v``.
    gate
        ``"channel"``: a decay for each of the K channels; ``"head"``: one for each head.
    gate_rank
        Rank of the channel gate's projection; ``gate="head"`` has a plain one.
    gate_normalizer
        Divides the log decay: larger forgets more slowly.
    output_gate
        Whether y has the factor silu(W_r x).
    bonus
        Whether each token reads the state before it, undecayed by its own gate, and itself with learned weights [H, K]
        that begin as ones.
    norm_eps
        Added to the mean square in the norm.
    backend
        A backend's name for every call, or None.
    device, dtype
        Of the parameters.

    Attributes
    ----------
    call
        What :meth:`forward` calls with q, k, v, g and options: :func:`portable_gla.attention`, or another of its
        signature put in its place, such as :func:`portable_gla.distributed.attention` with its group bound.

    Raises
    ------
    TypeError, ValueError
        If sizes do not fit together; from the calls, if a tensor does not.

    Examples
    --------
    >>> layer = GatedLinearAttention(64, num_heads=2)
    >>> layer(torch.randn(1, 10, 64)).shape
    torch.Size([1, 10, 64])
    >>> state = layer.init_state(batch=1)
    >>> layer.step(torch.randn(1, 64), state).shape
    torch.Size([1, 64])
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        key_dim: int | None = None,
        value_dim: int | None = None,
        gate: str = "channel",
        gate_rank: int = 16,
        gate_normalizer: float = 16.0,
        output_gate: bool = True,
        bonus: bool = False,
        norm_eps: float = 1e-5,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        for name, count in (("hidden_size", hidden_size), ("num_heads", num_heads), ("num_kv_heads", num_kv_heads),
                            ("gate_rank", gate_rank)):
            if isinstance(count, bool) or not isinstance(count, int):
                raise TypeError(f"{name}: expected an integer, got {type(count).__name__}")
            if count < 1:
                raise ValueError(f"{name}: expected 1 or more, got {count}")
        if num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads: expected a divisor of num_heads = {num_heads}, got {num_kv_heads}")
        if gate not in GATES:
            raise ValueError(f"gate: expected one of {GATES}, got {gate!r}")
        if not gate_normalizer > 0:
            raise ValueError(f"gate_normalizer: expected more than 0, got {gate_normalizer}")
        key_dim = int(hidden_size * expand_k) if key_dim is None else key_dim
        value_dim = int(hidden_size * expand_v) if value_dim is None else value_dim
        for name, width in (("key_dim", key_dim), ("value_dim", value_dim)):
            if width < 1 or width % num_heads:
                raise ValueError(f"{name}: expected a multiple of num_heads = {num_heads}, got {width}")

        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_key_dim = key_dim // num_heads
        self.head_value_dim = value_dim // num_heads
        self.gate = gate
        self.gate_normalizer = float(gate_normalizer)
        self.norm_eps = norm_eps
        self.backend = backend
        self.call: Callable[..., Tensor | tuple[Tensor, Tensor]] = attention

        def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=bias, device=device, dtype=dtype)

        self.q_proj = linear(hidden_size, key_dim)
        self.k_proj = linear(hidden_size, num_kv_heads * self.head_key_dim)
        self.v_proj = linear(hidden_size, num_kv_heads * self.head_value_dim)
        self.gate_proj: nn.Module = linear(hidden_size, num_heads, bias=True) if gate == "head" else nn.Sequential(
            linear(hidden_size, gate_rank), linear(gate_rank, key_dim, bias=True))
        self.output_gate_proj = linear(hidden_size, value_dim) if output_gate else None
        self.norm_weight = nn.Parameter(torch.ones(self.head_value_dim, device=device, dtype=dtype))
        self.bonus = nn.Parameter(
            torch.ones(num_heads, self.head_key_dim, device=device, dtype=dtype)) if bonus else None
        self.o_proj = linear(value_dim, hidden_size)

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        output_state: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Run all T tokens at once.

        Parameters
        ----------
        x
            [B, T, D], in the parameters' dtype (any under autocast).
        state
            [N or 1, H, K, V], the state before the first token; None is zero.
        cu_seqlens
            int32 or int64 [N + 1]: N sequences packed along T, with B = 1.
        output_state
            Return the state after the last token too.

        Returns
        -------
        y : Tensor
            [B, T, D].
        state : Tensor
            [N, H, K, V] in float32 (float64 for float64 inputs); only with ``output_state``.

        Raises
        ------
        TypeError, ValueError
            If x, state or cu_seqlens is malformed.
        portable_gla.UnsupportedProblem
            If no backend serves the call.
        """
        if x.dim() != 3 or x.shape[2] != self.hidden_size:
            raise ValueError(f"x: expected shape [B, T, {self.hidden_size}], got {list(x.shape)}")
        found = self.call(*self._project(x), bonus=self.bonus, initial_state=state, cu_seqlens=cu_seqlens,
                          output_final_state=output_state, backend=self.backend)
        if isinstance(found, Tensor):
            return self._merge(x, found)
        return self._merge(x, found[0]), found[1]

    def init_state(self, batch: int, device: torch.device | str | None = None) -> Tensor:
        """Return the state of ``batch`` sequences before their first token: zeros [batch, H, K, V].

        float32, or float64 where the parameters are; on ``device``, by default the parameters' own.
        """
        weight = self.q_proj.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return torch.zeros(batch, self.num_heads, self.head_key_dim, self.head_value_dim, dtype=dtype,
                           device=weight.device if device is None else device)

    @torch.no_grad()
    def step(self, x: Tensor, state: Tensor, slots: Tensor | None = None) -> Tensor:
        """Decode the next token, or few, of every sequence; equal to :meth:`forward` within the error budget.

        Parameters
        ----------
        x
            [B, D], one token for each sequence, or [B, T, D].
        state
            [B, H, K, V] from :meth:`init_state` or :meth:`forward`, updated in place; with ``slots`` a pool
            [P, H, K, V].
        slots
            int32 or int64 [B], each sequence's row of the pool; −1 skips it. See :func:`portable_gla.decode_`.

        Returns
        -------
        Tensor
            y, shaped as x, without gradients.

        Raises
        ------
        TypeError, ValueError
            If x, state or slots is malformed.
        """
        if x.dim() not in (2, 3) or x.shape[-1] != self.hidden_size:
            raise ValueError(f"x: expected shape [B, {self.hidden_size}] or [B, T, {self.hidden_size}], "
                             f"got {list(x.shape)}")
        tokens = x[:, None] if x.dim() == 2 else x
        o = decode_(*self._project(tokens), state, slots=slots, bonus=self.bonus, backend=self.backend)
        return self._merge(tokens, o).view(x.shape)

    def extra_repr(self) -> str:
        """Describe the sizes that the submodules do not show."""
        return (f"{self.hidden_size}, num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, "
                f"K={self.head_key_dim}, V={self.head_value_dim}, gate={self.gate!r}, backend={self.backend!r}")

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q = _heads(self.q_proj(x), self.num_heads)
        k = _heads(self.k_proj(x), self.num_kv_heads)
        v = _heads(self.v_proj(x), self.num_kv_heads)
        gate: Tensor = self.gate_proj(x)
        # In 16 bits a slow decay's logarithm would round to one of few values; float32 costs little beside q, k, v.
        g = functional.logsigmoid(gate.to(_wide(gate))) / self.gate_normalizer
        return q, k, v, g if self.gate == "head" else _heads(g, self.num_heads)

    def _merge(self, x: Tensor, o: Tensor) -> Tensor:
        wide = _wide(o)
        y = functional.rms_norm(o.to(wide), (self.head_value_dim,), self.norm_weight.to(wide), self.norm_eps)
        y = y.to(o.dtype).flatten(-2)
        if self.output_gate_proj is not None:
            y = y * functional.silu(self.output_gate_proj(x))
        merged: Tensor = self.o_proj(y)
        return merged


def _heads(x: Tensor, count: int) -> Tensor:
    return x.view(*x.shape[:-1], count, -1)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
