"""``sam3slim benchmark``: one model in every runtime and arithmetic of this machine, beside PyTorch in FP32."""

from sam3slim.benchmarking.job import BenchmarkSpec, benchmark

__all__ = ["BenchmarkSpec", "benchmark"]
