"""The formulas: pure functions of tensors, in float64, without a network, a file or a random state of their
own.
"""
