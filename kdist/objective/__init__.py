"""What is computed of targets and predictions: the losses and metrics of each output.

Two stages, because names are checked when a model is compiled and shapes are known when it is built.  A `Plan` is what
`compile` was given, with every name resolved.  An `Objective` is the plan bound to the outputs of a model: which loss
and which metrics each has, and under what name they are logged.
"""

from kdist.objective.objective import Objective
from kdist.objective.outputs import Outputs
from kdist.objective.plan import Plan

__all__ = ["Objective", "Outputs", "Plan"]
