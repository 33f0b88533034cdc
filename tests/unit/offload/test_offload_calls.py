"""``offload_states`` around real calls of the CPU backend and of emulated Triton kernels; copies on fake streams."""

import contextlib
import gc
import mmap

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import portable_gla
from portable_gla import ops
from portable_gla.streams.immediate import ImmediateStreams
from portable_gla.testing import emulate
from portable_gla.testing.counting import counted
from portable_gla.testing.streams import CopyError, ShuffledStreams, ThreadedStreams

T, H, D = 530, 2, 8
STATES = 4 * 2 * H * D * D  # bytes: the CPU backend saves the states after every 256 tokens
LAYERS = 3


@pytest.fixture
def inputs(seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v, g = (torch.randn(1, T, H, D, generator=generator) for _ in range(4))
    return [x.requires_grad_() for x in (q, k, v, torch.nn.functional.logsigmoid(g))]


def model(q, k, v, g):
    for _ in range(LAYERS):
        v = v + portable_gla.attention(q * 0.5, k * 0.5, v, g)
    return v


def gradients(run, inputs, context=None):
    if context is None:
        o = run(*inputs)
    else:
        with context:
            o = run(*inputs)
    return [o.detach(), *torch.autograd.grad(o.square().sum(), inputs)]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("tensors", ["residuals", "all"])
def test_gradients_are_the_same_to_the_bit(inputs, seed, tensors):
    expected = gradients(model, inputs)
    for kind in (ShuffledStreams, ThreadedStreams):
        for n in range(3):
            streams = kind(seed + n)
            offload = portable_gla.offload_states(tensors=tensors, prefetch=1 + n % 2, streams=streams)
            for _ in range(2):
                assert same(gradients(model, inputs, offload), expected)
            saved = STATES if tensors == "residuals" else STATES + 4 * 4 * T * H * D
            assert offload.moved_bytes == 2 * LAYERS * saved
            # Out once and back once, whatever was copied ahead.
            assert streams.copies == 2 * 2 * LAYERS * (1 if tensors == "residuals" else 5)


def test_emulated_triton_kernels(seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = [(-torch.rand(1, 65, 1, 16, generator=generator)).requires_grad_() for _ in range(4)]
    offload = portable_gla.offload_states(streams=ThreadedStreams(seed))
    with emulate("triton", segments=2):
        assert same(gradients(model, inputs, offload), gradients(model, inputs))
    assert offload.moved_bytes == LAYERS * 4 * 16 * 16  # one boundary


def test_the_eager_backend(inputs):
    offload = portable_gla.offload_states(streams=ShuffledStreams(0), tensors="all")

    def two(q, k, v, g):
        return portable_gla.attention(q, k, portable_gla.attention(q, k, v, g, backend="eager"), g, backend="eager")

    wide = [x.detach().double().requires_grad_() for x in inputs]
    assert same(gradients(two, wide, offload), gradients(two, wide))
    assert offload.moved_bytes > 2 * 4 * 8 * T * H * D


def test_host_memory_is_as_large_as_the_states_and_used_again(inputs):
    streams = ShuffledStreams(0)
    offload = portable_gla.offload_states(streams=streams)
    for _ in range(3):
        gradients(model, inputs, offload)
        assert offload.host_bytes == streams.host_bytes == LAYERS * STATES


def test_a_fixed_pool_of_just_the_right_size_serves_and_a_smaller_one_refuses_before_the_call(inputs, monkeypatch):
    expected = gradients(model, inputs)
    exact = portable_gla.offload_states(host_bytes=LAYERS * STATES, streams=ShuffledStreams(0))
    for _ in range(2):
        assert same(gradients(model, inputs, exact), expected)
    small = portable_gla.offload_states(host_bytes=LAYERS * STATES - 64, streams=ShuffledStreams(0))
    ran = []
    backend = portable_gla.registry.get("cpu")
    forward = backend.forward
    monkeypatch.setattr(backend, "forward", lambda call, *, save: (ran.append(1), forward(call, save=save))[1])
    with pytest.raises(portable_gla.HostMemoryError, match=r"host_bytes: the pool of 2.938 KiB has 960 B left, and "
                                                            r"the states of this call need 1 KiB"):
        gradients(model, inputs, small)
    assert len(ran) == LAYERS - 1


def test_a_host_that_is_too_small_is_said_before_any_work(inputs, monkeypatch):
    monkeypatch.setattr("portable_gla.offload.pool.available_host_bytes", lambda: STATES - 1)
    streams = ShuffledStreams(0)
    for offload in (portable_gla.offload_states(streams=streams),
                    portable_gla.offload_states(streams=streams, host_bytes=STATES)):
        with pytest.raises(portable_gla.HostMemoryError, match="more host memory, and 1023 B is available"), offload:
            model(*inputs)
        assert streams.copies == streams.host_bytes == 0


def test_an_exception_leaves_nothing_behind(inputs):
    streams = ShuffledStreams(0)
    offload = portable_gla.offload_states(host_bytes=LAYERS * STATES, streams=streams)
    expected = gradients(model, inputs)
    with pytest.raises(ZeroDivisionError), offload:
        o = model(*inputs)
        raise ZeroDivisionError
    assert ops.saving.get() is None
    assert same([o.detach(), *torch.autograd.grad(o.square().sum(), inputs)], expected)
    del o
    moved = offload.moved_bytes
    assert same(gradients(model, inputs), expected)
    assert offload.moved_bytes == moved
    assert same(gradients(model, inputs, offload), expected)  # all of the fixed pool was free again


def test_a_graph_that_dies_gives_its_slots_back(inputs):
    offload = portable_gla.offload_states(host_bytes=LAYERS * STATES, streams=ShuffledStreams(0))
    for _ in range(3):
        with offload:
            model(*inputs)
        gc.collect()


def test_a_graph_can_be_walked_twice(inputs):
    expected = gradients(model, inputs)
    streams = ShuffledStreams(0)
    with portable_gla.offload_states(streams=streams):
        o = model(*inputs)
    for walk in range(3):
        assert same([o.detach(), *torch.autograd.grad(o.square().sum(), inputs, retain_graph=True)], expected)
        assert streams.copies == LAYERS * (2 + walk)


def test_several_graphs_at_a_time(inputs):
    """Gradient accumulation backwards: the first graph first."""
    expected = gradients(model, inputs)
    offload = portable_gla.offload_states(streams=ShuffledStreams(0), prefetch=2)
    with offload:
        outputs = [model(*inputs) for _ in range(3)]
    for o in outputs:
        assert same([o.detach(), *torch.autograd.grad(o.square().sum(), inputs)], expected)


@pytest.mark.parametrize("strided", ["transposed", "fused", "expanded"])
def test_inputs_come_back_with_their_strides(inputs, strided):
    if strided == "transposed":
        changed = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in inputs]
    elif strided == "fused":
        fused = torch.cat([x.detach() for x in inputs], -1)
        changed = [fused[..., i * D:(i + 1) * D].requires_grad_() for i in range(4)]
    else:
        changed = [x.detach()[:, :, :1].expand(-1, -1, H, -1).requires_grad_() for x in inputs]

    def one(q, k, v, g):
        return portable_gla.attention(q, k, v, g)

    offload = portable_gla.offload_states(tensors="all", streams=ShuffledStreams(0))
    assert same(gradients(one, changed, offload), gradients(one, changed))
    assert offload.moved_bytes == STATES + 4 * 4 * T * D * (1 if strided == "expanded" else H)


def test_parts_of_one_projection_come_back_without_their_neighbours(inputs):
    """Else each of q, k, v and g would take the memory of all four."""
    fused = torch.cat([x.detach() for x in inputs], -1).requires_grad_()
    sizes = []

    class Sizes(ShuffledStreams):
        def empty_strided(self, shape, strides, dtype):
            sizes.append(sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1)
            return super().empty_strided(shape, strides, dtype)

    offload = portable_gla.offload_states(tensors="all", streams=Sizes(0))
    found = gradients(lambda x: portable_gla.attention(*x.chunk(4, -1)), [fused], offload)
    assert same(found, gradients(lambda x: portable_gla.attention(*x.chunk(4, -1)), [fused]))
    assert sorted(sizes) == [STATES // 4, *[T * H * D] * 4]


def test_compiled_by_inductor(inputs):
    """Such a graph has strides written into it, and may write over what was saved."""
    fused = torch.cat([x.detach() for x in inputs], -1).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: portable_gla.attention(*(2 * x).chunk(4, -1)), fullgraph=True)
    expected = gradients(compiled, [fused])
    for tensors in ("residuals", "all"):
        offload = portable_gla.offload_states(tensors=tensors, streams=ShuffledStreams(0))
        for _ in range(2):
            assert same(gradients(compiled, [fused], offload), expected)
        assert offload.moved_bytes == 2 * STATES if tensors == "residuals" else offload.moved_bytes > 2 * STATES


@pytest.mark.parametrize("tensors", ["residuals", "all"])
def test_compiled(inputs, seed, tensors):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = gradients(compiled, inputs)
    for n in range(3):
        offload = portable_gla.offload_states(tensors=tensors, streams=ShuffledStreams(seed + n))
        assert same(gradients(compiled, inputs, offload), expected)
        assert offload.moved_bytes >= LAYERS * STATES
        assert (offload.moved_bytes == LAYERS * STATES) == (tensors == "residuals")
    torch._dynamo.reset()
    # Compiled inside the context from the start.
    offload = portable_gla.offload_states(tensors=tensors, streams=ShuffledStreams(seed))
    assert same(gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), inputs, offload), expected)
    assert offload.moved_bytes >= LAYERS * STATES


def test_checkpointed(inputs, seed):
    """What is recomputed saves nothing in between; calls beside it are offloaded."""
    def mixed(q, k, v, g):
        v = checkpoint(model, q, k, v, g, use_reentrant=False)
        return v + portable_gla.attention(q, k, v, g)

    offload = portable_gla.offload_states(streams=ShuffledStreams(seed))
    expected = gradients(mixed, inputs)
    assert same(gradients(mixed, inputs, offload), expected)
    assert offload.moved_bytes == STATES

    def run(*inputs):  # the backward pass, and so the recomputation, within the context
        return gradients(mixed, inputs)

    with offload:
        assert same(run(*inputs), expected)
    # Within what is checkpointed: forward and recomputation agree on what is saved.
    inside = portable_gla.offload_states(streams=ShuffledStreams(seed))

    def within(*inputs):
        with inside:
            return model(*inputs)

    assert same(gradients(lambda *x: checkpoint(within, *x, use_reentrant=False), inputs), gradients(model, inputs))


@pytest.mark.parametrize("kind", [ShuffledStreams, ThreadedStreams])
def test_an_error_in_a_copy_is_raised_in_the_backward_pass(inputs, kind):
    for failing in range(LAYERS + 1, 2 * LAYERS + 1):
        offload = portable_gla.offload_states(streams=kind(failing, failing_copy=failing))
        with offload:
            o = model(*inputs)
        with pytest.raises(CopyError, match=f"copy {failing} "):
            o.sum().backward()


def test_a_tensor_changed_in_place_is_still_noticed(inputs):
    q, k, v, g = inputs
    with portable_gla.offload_states(streams=ShuffledStreams(0)):
        scaled = 2 * v
        o = portable_gla.attention(q, k, scaled, g)
    with torch.no_grad():
        scaled.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        o.sum().backward()


def test_on_a_cpu_it_changes_nothing(inputs):
    expected = gradients(model, inputs)
    offload = portable_gla.offload_states(host_bytes=1)
    assert same(gradients(model, inputs, offload), expected)
    assert offload.moved_bytes == offload.host_bytes == 0


def test_a_call_without_states_moves_nothing(inputs):
    offload = portable_gla.offload_states(streams=ShuffledStreams(0), host_bytes=1)
    short = [x[:, :255] for x in inputs]
    assert same(gradients(model, short, offload), gradients(model, short))
    with torch.no_grad(), offload:
        model(*inputs)
    assert offload.moved_bytes == 0


def test_nested(inputs):
    outer = portable_gla.offload_states(streams=ShuffledStreams(0))
    inner = portable_gla.offload_states(streams=ShuffledStreams(1))
    expected = gradients(model, inputs)
    with outer:
        v = portable_gla.attention(*inputs)
        with inner:
            v = portable_gla.attention(inputs[0], inputs[1], v, inputs[3])
        with outer:
            v = portable_gla.attention(inputs[0], inputs[1], v, inputs[3])
    v.sum().backward()
    assert (outer.moved_bytes, inner.moved_bytes) == (2 * STATES, STATES)
    assert same(gradients(model, inputs), expected)


def test_bad_arguments():
    for keyword, value, error, message in (
            ("tensors", "q", ValueError, r"tensors: expected one of \('residuals', 'all'\), got 'q'"),
            ("host_bytes", 0, ValueError, "host_bytes: expected 1 or more, got 0"),
            ("host_bytes", 1.5, TypeError, "host_bytes: expected an integer, got float"),
            ("prefetch", 0, ValueError, "prefetch: expected 1 or more, got 0"),
            ("prefetch", True, TypeError, "prefetch: expected an integer, got True")):
        with pytest.raises(error, match=message):
            portable_gla.offload_states(**{keyword: value})


class AtOnce(ImmediateStreams):
    """Copies at once, to host memory that is no memory of PyTorch's allocator: what is counted is the device's."""

    overlaps = True

    def host_memory(self, count):
        return torch.frombuffer(mmap.mmap(-1, count), dtype=torch.uint8)


def test_the_device_holds_the_states_of_few_calls(inputs):
    """Counted: of ``layers`` calls' states all but two less in the forward pass."""
    def forward(layers, offload):
        with offload:
            return many(layers, *inputs)

    def many(layers, q, k, v, g):
        return [portable_gla.attention(q, k, v, g) for _ in range(layers)]

    layers = 10
    offload = portable_gla.offload_states(streams=AtOnce())
    forward(layers, offload)  # the pool is there
    with_states, _ = counted(lambda: forward(layers, contextlib.nullcontext()))
    without, _ = counted(lambda: forward(layers, offload))
    assert with_states.left - without.left == layers * STATES
    assert with_states.peak - without.peak >= (layers - 2) * STATES
