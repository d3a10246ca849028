"""What did the acceleration cost? Quality metrics, honest statistics, and the efficiency they are paid for
with.

The formulas are in :mod:`hasten.eval.functional`, intervals and decisions in :mod:`hasten.eval.statistics`,
time, memory and FLOPs in :mod:`hasten.eval.efficiency`, metrics as objects in :mod:`hasten.eval.metrics` and
as ``torchmetrics.Metric`` in :mod:`hasten.eval.modules`. Importing this package loads none of them.
"""
