"""The library in one screen: call it, ask what ran and why, train through it, decode with it."""

import torch
from torch.nn.functional import logsigmoid

import portable_gla

B, T, H, K, V = 2, 512, 4, 64, 128
q, k = torch.randn(2, B, T, H, K).unbind()
v = torch.randn(B, T, H, V)
g = logsigmoid(torch.randn(B, T, H, K)) / 16  # the natural log of each channel's decay

# S_t = diag(exp(g_t)) S_{t-1} + k_t v_tᵀ and o_t = scale · S_tᵀ q_t, for every token, on the tensors' own device
o, state = portable_gla.attention(q, k, v, g, output_final_state=True)
print("o", list(o.shape), " state", list(state.shape))

# which backend ran, why not another, and what it should cost; Problem(...) asks the same of a device that is absent
print(portable_gla.plan(q, k, v, g))
print(portable_gla.plan(portable_gla.Problem(tokens=T, heads=H, key_dim=K, value_dim=V), device="h200"))

# gradients flow to every input
leaves = [x.clone().requires_grad_() for x in (q, k, v, g)]
portable_gla.attention(*leaves).square().mean().backward()
print("gradient norms", [f"{x.grad.norm():.2g}" for x in leaves])

# decoding: one token at a time, the state updated in place, equal to the parallel form
state = torch.zeros(B, H, K, V)
steps = [portable_gla.decode_(q[:, [t]], k[:, [t]], v[:, [t]], g[:, [t]], state) for t in range(T)]
print("decoding differs by at most", f"{(torch.cat(steps, 1) - o).abs().max():.1e}")
