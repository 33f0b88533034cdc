"""The streams of an accelerator, on a stand-in for ``torch.cuda`` that writes down what it is asked."""

import contextlib

import pytest
import torch

from portable_gla import streams
from portable_gla.streams.device import AcceleratorStreams, CudaStreams
from portable_gla.streams.immediate import ImmediateStreams


class Event:
    def __init__(self, log):
        self.log = log

    def record(self, stream):
        self.log.append(("record", stream))

    def synchronize(self):
        self.log.append("synchronize")


class Module:
    """Of ``torch.cuda``, what is used."""

    def __init__(self, status=0):
        self.log, self.status, self.running = [], status, None

    def Stream(self, device):
        module = self

        class Stream:
            def wait_event(self, event):
                module.log.append(("wait", self, event))

        return Stream()

    def Event(self):
        return Event(self.log)

    def current_stream(self, device):
        return f"current of {device}"

    def current_device(self):
        return 3

    @contextlib.contextmanager
    def stream(self, stream):
        self.running = stream
        yield
        self.running = None

    def cudart(self):
        return self

    def cudaHostRegister(self, address, count, flags):
        self.log.append(("register", address % 4096, count, flags))
        return self.status

    def cudaHostUnregister(self, address):
        self.log.append(("unregister", address % 4096))
        return self.status

    def cudaGetErrorString(self, status):
        return f"error {int(status)}"


def test_the_calls_reach_the_device():
    module = Module()
    layer = AcceleratorStreams(torch.device("cuda"), module)
    assert str(layer.device) == "cuda:3"
    assert layer.current() == "current of cuda:3"
    stream = layer.new_stream()
    event = layer.record(stream)
    layer.wait(stream, event, "made")
    layer.synchronise(event)
    assert module.log == [("record", stream), ("wait", stream, event), "synchronize"]
    ran = []
    layer.launch(stream, lambda: ran.append(module.running))
    assert ran == [stream]

    class Target:
        def copy_(self, source, non_blocking):
            ran.append((source, non_blocking, module.running, torch.is_grad_enabled()))

    layer.copy(stream, Target(), "source")
    assert ran[1] == ("source", True, stream, False)


def test_host_memory_of_cuda_is_exact_registered_and_on_pages_of_its_own():
    module = Module()
    layer = CudaStreams(torch.device("cuda:0"), module)
    memory = layer.host_memory(10_000)
    assert (memory.dtype, memory.numel()) == (torch.uint8, 10_000)
    memory.fill_(1)
    layer.release_host_memory(memory)
    assert module.log == [("register", 0, 10_000, 1), ("unregister", 0)]
    assert layer.host_memory(0).numel() == 0
    with pytest.raises(RuntimeError, match="registering 10 bytes of host memory failed: error 2"):
        CudaStreams(torch.device("cuda:0"), Module(status=2)).host_memory(10)


def test_the_choice():
    assert isinstance(streams.of(torch.device("cpu")), ImmediateStreams)
    assert not streams.of(torch.device("cpu")).overlaps


def test_available_memory_is_the_smaller_of_the_machines_and_the_containers(monkeypatch, tmp_path):
    from portable_gla.streams import memory

    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2000 kB\n")
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "current").write_text("1000\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_LIMIT", tmp_path / "max")
    monkeypatch.setattr(memory, "_USED", tmp_path / "current")
    assert streams.available_host_bytes() == 2000 * 1024
    (tmp_path / "max").write_text("5000\n")
    assert streams.available_host_bytes() == 4000
