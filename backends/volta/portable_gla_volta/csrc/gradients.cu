// The gradients of one chunk of 32 positions, from the state S before it and the gradient R by the state after it.
// With dA_ij = scale do_i . v_j for j < i, F_ij the decay from j to i, u the bonus or 1:
//
//   dq_i = scale P_i S do_i + Σ_j dA_ij F_ij k_j + u k_i dA_ii      dk_j = Q_j R v_j + Σ_i dA_ij F_ij q_i + u q_j dA_jj
//   dv_j = Rᵀ (k_j Q_j) + scale Σ_i A_ij do_i
//
// dg_t sums the paths that cross the gate of t: from the state to readers from t on, from keys before t to the state
// after, from state to state, and from keys before t to readers from t on. Each carries that gate's decay and nothing
// of another path is added and taken away again, so the gradient of a strong gate is right relative to its own size.
//
// Grid: slots x heads x (tiles of K + tiles of V), these fastest: a program makes dq, dk and dg of KT channels, or dv.
// Compiled in: KP (K padded), KT; CHANNEL: gates per channel, else per head, constant or none; FLOAT32.
#include "target.cuh"
#include "arguments.cuh"
#include "common.cuh"
#include "tiles.cuh"
#include "column.cuh"
#include "vectors.cuh"
#include "scores.cuh"
#include "gradients_common.cuh"
#include "gradients_keys.cuh"
#include "gradients_values.cuh"

KERNEL(gradients, THREADS, 2, GradientsArguments) {
  const Sequences& sequences = arguments.sequences;
  int tiles = ceil_div(arguments.key_dim, KT), roles = tiles + ceil_div(arguments.value_dim, KT);
  int role = block() % roles, slot = block() / roles / sequences.heads;
  Work work;
  work.head = block() / roles % sequences.heads;
  work.row = (int64)slot * sequences.heads + work.head;
  work.place = locate(sequences, slot);
  work.position = work.place.piece * CHUNK;
  work.end = work.place.length;
  if (work.position >= work.place.length) {  // of a slot without tokens nothing is summed
    int channel = role * KT + thread();
    if (role < tiles && arguments.constant && thread() == 0)
      store_number(arguments.dg.data, role * arguments.dg_part + work.row, 0, 0.0f);
    if (role < tiles && arguments.bonus && thread() < KT && channel < arguments.key_dim)
      store_number(arguments.dbonus, work.row * arguments.key_dim + channel, 0, 0.0f);
    return;
  }
  if (role < tiles) key_gradients(arguments, work, role);
  else value_gradients(arguments, work, role - tiles);
}
