"""What did an acceleration cost? Baseline, configurations and controls over the same prompts and seeds.

:mod:`~hasten.eval.compare.engine` makes the pictures, :mod:`~hasten.eval.compare.store` keeps them so that a
killed run goes on where it stopped, :mod:`~hasten.eval.compare.analysis` turns scores into differences with
intervals, and :mod:`~hasten.eval.compare.document` writes ``report.json``. Importing this package loads none
of them.
"""
