// dv of KT columns: see gradients.cu.
#pragma once

DEVICE void value_gradients(const GradientsArguments& arguments, const Work& work, int tile) {
  const Sequences& sequences = arguments.sequences;
  int own = thread() % KT, side = thread() / KT, first = work.position + SUB * side, first_value = tile * KT;
  bool exclusive = arguments.bonus;
  Rows q = rows_of(arguments.q, sequences, work.place, work.head), k = rows_of(arguments.k, sequences, work.place, work.head);
  Rows d = rows_of(arguments.d, sequences, work.place, work.head), g = rows_of(arguments.g, sequences, work.place, work.head);
  if (!CHANNEL && warp() == 0) head_vectors(VECTORS, g, work.position, work.end, exclusive);
  Kept r = kept_of(arguments, arguments.kept_r, arguments.units_r, work.row);
  Scores<WARPS> scores;
  clear(scores.diagonal);
  clear(scores.between);
  float found[2][8], inner[2][8];
  UNROLL for (int n = 0; n < 2; n++) {
    clear(found[n]);
    clear(inner[n]);
  }
  int readers = 0, keys = TILE_BYTES;
  float lift = 1.0f, scores_lifted = 1.0f;  // lift: of a tile's keys
  for (int block_k = 0; block_k < TILES; block_k++) {
    int channel = block_k * KT + own;
    bool inside = channel < arguments.key_dim;
    Column column;
    load_pairs(column, q, k, first, work.end, channel, inside);
    float bonus = weight_of(arguments, work.head, channel, inside);
    if (CHANNEL) {
      load_decays(column.e, g, first, work.end, channel, inside);
      shared_set(TOTALS + 4 * thread(), product_of(column.e));
      vote(VOTES, column, bonus);
      barrier();
      Outcome voted = outcome<WARPS>(VOTES);
      float other = shared_float(TOTALS + 4 * ((1 - side) * KT + own)), change = voted.written * inverse_power(lift);
      lift = voted.written;
      take_up(scores, scores_lifted, voted);
      UNROLL for (int block = 0; block < 2; block++)
        UNROLL for (int i = 0; i < 8; i++) found[block][i] *= change;
      channel_scores<WARPS, CHUNKS>(scores, readers, keys, column, own, side, voted, exclusive, bonus,
                                    side ? other : 1.0f);
      put_keys<CHUNKS>(keys, column, own, side, side ? lift : other * lift);
    } else {
      head_scores<WARPS, CHUNKS>(scores, readers, keys, column, own, side, exclusive, bonus);
    }
    for (int slice = 0; slice < KT / SLICE; slice++) {
      for (int item = thread(); item < KT * SLICE_CHUNKS; item += THREADS) {
        int row = item / SLICE_CHUNKS, chunk = item % SLICE_CHUNKS;
        shared_store<4>(LINK_AT + tile_at<SLICE_CHUNKS>(row, chunk),
                        kept_chunk(arguments, r, first_value + row, block_k * KT + slice * SLICE + PER * chunk));
      }
      barrier();
      for (int chunk = 0; chunk < SLICE_CHUNKS; chunk++)
        UNROLL for (int block = 0; block < 2; block++)
          multiply_rows<CHUNKS, SLICE_CHUNKS>(found[block], keys, 16 * block, LINK_AT, 16 * warp(),
                                              slice * SLICE_CHUNKS + chunk, chunk);
      barrier();
    }
  }
  store_partials<WARPS>(scores, 0);
  barrier();
  Blocks<WARPS> blocks;
  sum_partials<WARPS>(blocks, 0);
  UNROLL for (int n = 0; n < Blocks<WARPS>::COUNT; n++) {
    int mine = warp() + n * WARPS;
    if (CHANNEL) UNROLL for (int i = 0; i < 8; i++) blocks.value[n][i] *= inverse_power(scores_lifted);
    else if (mine < BLOCKS) decay_pairs(blocks.value[n], VECTORS, block_row(mine), block_column(mine), exclusive);
  }
  store_largest<WARPS>(blocks, LARGEST);
  barrier();
#ifdef FLOAT32
  float unit = 1.0f;
#else
  float unit = unit_of_scores<WARPS>(LARGEST);
#endif
  put_scores<WARPS>(blocks, WEIGHTS, inverse_power(unit), true);
  stage<KT>(DO_AT, d, work, first_value, arguments.value_dim);
  barrier();
  for (int chunk = 0; chunk < SCORE_CHUNKS; chunk++)
    multiply_columns<SCORE_CHUNKS, PAIRS, CHUNKS>(inner, WEIGHTS, DO_AT, 16 * warp(), chunk, FROM);
  UNROLL for (int block = 0; block < 2; block++)
    UNROLL for (int i = 0; i < 8; i++) {
      float factor = r.unit * inverse_power(lift);
      if (!CHANNEL) factor *= shared_float(VECTORS + VECTOR_SUFFIX + 4 * (16 * block + result_row(i)));
      found[block][i] = fma_(inner[block][i], unit * arguments.scale, found[block][i] * factor);
    }
  store_results<KT>(DV_AT, found, 16 * warp());
  barrier();
  float dv[SUB];
  UNROLL for (int n = 0; n < SUB; n++) dv[n] = shared_float(DV_AT + float_at<KT>(SUB * side + n, own));
  int value = first_value + own;
  store_column(rows_of(arguments.dv, sequences, work.place, work.head), first,
               value < arguments.value_dim ? work.end : first, value, dv);
}
