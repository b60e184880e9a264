"""Prior matching ("pm"): shift a prediction's class prior to uniform, without labels.

One bias per class, b, is fitted on unlabelled proxy images that are known to be balanced, such that
mean_x softmax(z(x) + b) is uniform. Fixed-point iteration, 60 times from b = 0:

    b <- b - 1/2 log(C mean_x softmax(z(x) + b))

(the label-shift correction of Saerens et al. 2002 with a known target prior, as one additive bias). It is a free
post-hoc step for every method, so a table that shows it for one shows it for all. C more parameters.
"""

from __future__ import annotations

from dataclasses import replace
from math import log

import torch
from torch import Tensor

from weightformer.baselines import Result

ITERATIONS = 60


def prior_bias(prediction: Tensor, iterations: int = ITERATIONS) -> Tensor:  # [n, C] -> [C]
    """Return the bias under which the mean probabilities of `prediction` + bias are uniform, in float64."""
    prediction = prediction.double().log_softmax(1)
    bias = prediction.new_zeros(prediction.shape[1])
    for _ in range(iterations):
        # log C + log of the mean over images; in the log domain, so a class without mass stays finite
        mass = (prediction + bias).log_softmax(1).logsumexp(0) - log(len(prediction)) + log(len(bias))
        bias = bias - 0.5 * mass
    return bias


def match_prior(result: Result, proxy: Tensor) -> Result:  # images [n, C, H, W]
    """Return `result` with its class prior on `proxy` shifted to uniform; one bias per class more is kept."""
    bias = prior_bias(result.logits(proxy)).to(torch.float32)
    cost = replace(result.cost, parameters=result.cost.parameters + len(bias))
    return Result(f"{result.name} + pm", lambda images: result.logits(images) + bias, None, cost)
