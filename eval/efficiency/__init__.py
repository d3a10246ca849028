"""What a run cost: wall-clock time, peak memory and floating-point operations."""

from hasten.eval.efficiency.flops import FlopCount, count_flops, measure_flops, register_formula
from hasten.eval.efficiency.memory import PeakMemory, peak_memory
from hasten.eval.efficiency.stages import timed_stages
from hasten.eval.efficiency.timing import Timings, interleave, stage_clock

__all__ = [
    "FlopCount",
    "PeakMemory",
    "Timings",
    "count_flops",
    "interleave",
    "measure_flops",
    "peak_memory",
    "register_formula",
    "stage_clock",
    "timed_stages",
]
