"""What did the acceleration cost? Quality metrics, honest statistics, and the efficiency they are paid for
with.

The formulas are in :mod:`hasten.eval.functional`, intervals and decisions in :mod:`hasten.eval.statistics`,
time, memory and FLOPs in :mod:`hasten.eval.efficiency`, metrics (``torchmetrics.Metric``) in
:mod:`hasten.eval.metrics`. Importing this package loads none of them.
"""
