"""The metrics that come with hasten, as objects of one shape (:mod:`hasten.eval.metric`)."""
