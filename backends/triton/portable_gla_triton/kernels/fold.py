"""Sums what was computed apart: over heads that share one, over tiles of K, chunks and sequences."""

import triton
import triton.language as tl


@triton.jit
def fold(jobs, JOBS: tl.constexpr, OUT: tl.constexpr, TERMS: tl.constexpr):
    """Do every job of a tuple, in float32 and a fixed order.

    A job is (source, target, its first program, its programs, outputs, inner, outer stride, inner stride, terms, their
    inner count, outer stride, inner stride): output n is the sum over terms m of the element ``n // inner`` outer +
    ``n % inner`` inner + ``m // count`` outer + ``m % count`` inner strides into the source. Grid: all jobs' programs,
    OUT outputs each.
    """
    program = tl.program_id(0)
    for index in tl.static_range(JOBS):
        job = jobs[index]
        if (program >= job[2]) & (program < job[2] + job[3]):
            place = tl.cast(program - job[2], tl.int64) * OUT + tl.arange(0, OUT)
            inside = place < job[4]
            offsets = place // job[5] * job[6] + place % job[5] * job[7]
            total = tl.zeros([TERMS, OUT], tl.float32)
            for first in range(0, job[8], TERMS):
                term = first + tl.arange(0, TERMS)
                steps = (term // job[9]).to(tl.int64) * job[10] + (term % job[9]).to(tl.int64) * job[11]
                total += tl.load(job[0] + offsets[None, :] + steps[:, None],
                                 mask=inside[None, :] & (term < job[8])[:, None], other=0.0)
            tl.store(job[1] + place, tl.sum(total, axis=0).to(job[1].dtype.element_ty), mask=inside)
