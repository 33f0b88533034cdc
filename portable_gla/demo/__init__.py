"""The main job on real input: train a small language model of gated linear attention, and check every promise on it."""

from portable_gla.demo.job import run

__all__ = ["run"]
