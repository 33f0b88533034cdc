// Sums what was computed apart: over heads that share one, tiles of K, chunks and sequences; each in a fixed order.
//
// Grid: all jobs' programs, 32 outputs each; the lanes of a warp have an output each, the warps share its terms.
#include "target.cuh"
#include "arguments.cuh"
#include "common.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS;

KERNEL(fold, THREADS, 4, FoldArguments) {
  UNROLL for (int index = 0; index < 8; index++) {
    const FoldJob& job = arguments.jobs[index];
    if (block() < job.first || block() >= job.first + job.programs) continue;
    int64 output = (int64)(block() - job.first) * 32 + lane();
    float sum = 0.0f;
    if (output < job.outputs) {
      const float* source = job.source + output / job.inner * job.outer_stride + output % job.inner * job.inner_stride;
      for (int64 term = warp(); term < job.terms; term += WARPS)
        sum += bits_to_float(
            global_load<1>(source + term / job.count * job.outer_step + term % job.count * job.inner_step).word[0]);
    }
    shared_set(4 * thread(), sum);
    barrier();
    if (warp() == 0 && output < job.outputs) {
      UNROLL for (int n = 1; n < WARPS; n++) sum += shared_float(4 * (32 * n + lane()));
      store_number(job.target, output, job.kind, sum);
    }
  }
}
