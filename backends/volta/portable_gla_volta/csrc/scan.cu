// Turns what segments add to a state into the states between them, in place.
//
// Grid: sequences x heads x 1024 elements of a state, these fastest; a thread has four of them.
#include "target.cuh"
#include "arguments.cuh"
#include "common.cuh"

constexpr int THREADS = 256, EACH = 4;

KERNEL(scan, THREADS, 2, ScanArguments) {
  Sequences sequences = arguments.sequences;
  int key_dim = arguments.key_dim, value_dim = arguments.value_dim;
  int tiles = ceil_div(key_dim * value_dim, THREADS * EACH);
  int tile = block() % tiles, head = block() / tiles % sequences.heads;
  Place place;
  place.sequence = block() / tiles / sequences.heads;
  place.start = 0;
  place.length = sequences.tokens;
  if (sequences.cu_seqlens) {
    place.start = (int)global_load<1>(sequences.cu_seqlens + place.sequence).word[0];
    place.length = (int)global_load<1>(sequences.cu_seqlens + place.sequence + 1).word[0] - place.start;
  }
  int boundaries = ceil_div(place.length, sequences.unit) - 1;
  UNROLL for (int n = 0; n < EACH; n++) {
    int element = tile * THREADS * EACH + n * THREADS + thread();
    if (element >= key_dim * value_dim) continue;
    int key = element / value_dim, value = element % value_dim;
    float s = arguments.edge.data ? state_number(arguments.edge, place.sequence, head, key, value) : 0.0f;
    for (int step = 0; step < boundaries; step++) {
      int row = link_row(sequences, place, arguments.forward ? step + 1 : boundaries - step);
      int64 decay = (int64)row * sequences.heads + head;
      if (arguments.per_channel) decay = decay * key_dim + key;
      s *= bits_to_float(global_load<1>(arguments.decays + decay).word[0]);
      s += state_number(arguments.links, row, head, key, value);
      set_state_number(arguments.links, row, head, key, value, s);
    }
  }
}
