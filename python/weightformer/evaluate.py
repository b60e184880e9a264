"""What a network's predictions are worth, and how two networks' predictions differ.

Every network is compared after `recalibrate`: weights that were averaged, permuted or predicted have no running
statistics of their own, and trained ones get theirs in the same way so that all rows of a table are alike.

A *prediction* is a tensor [n, C] whose log-softmax is the predictive distribution: logits or log-probabilities.
Accuracy, agreement and ECE are in percent, NLL and KL in nats, Brier is the sum of squares over classes (0 to 2).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import astuple, dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

ECE_BINS = 15


def with_state(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of `model` that holds `state`; `model` stays as it is."""
    copy = deepcopy(model)
    copy.load_state_dict(state)
    return copy


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode, without gradients, and every module back into its own mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class _ReachedError(Exception):
    """Ends a forward pass at the BatchNorm whose statistics are being collected."""


def recalibrate(model: nn.Module, images: Tensor, batch_size: int = 1024) -> nn.Module:  # [n, C, H, W]
    """Set the running statistics of every BatchNorm to those of its input over all `images`, in place.

    Exact, in forward order: a layer's statistics are taken with all earlier layers already normalising by their final
    ones. One pass where `images` fit one batch, else one (partial) pass for each BatchNorm. The variance is unbiased,
    as torch keeps it. A model without running statistics is left alone. A BatchNorm that runs twice in one pass takes
    the statistics of its first call.

    Returns `model`. Raises ValueError where a channel has fewer than two values.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return model
    batches = torch.split(images, batch_size)
    collected: dict[_BatchNorm, list[tuple[int, Tensor, Tensor]]] = {}
    finished: set[_BatchNorm] = set()

    def finish(norm: _BatchNorm) -> None:
        mean, variance = _merge(collected.pop(norm))
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        finished.add(norm)

    def observe(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        if norm in finished:
            return
        collected.setdefault(norm, []).append(_moments(inputs[0]))
        if len(batches) > 1:
            raise _ReachedError
        finish(norm)

    handles = [norm.register_forward_pre_hook(observe) for norm in norms]
    try:
        with evaluating(model):
            while len(finished) < len(norms):
                known = len(finished)
                for batch in batches:
                    with suppress(_ReachedError):
                        model(batch)
                for norm in list(collected):
                    finish(norm)
                if len(finished) == known:  # the rest takes no part in a forward pass
                    break
    finally:
        for handle in handles:
            handle.remove()
    return model


def _moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return count, mean [C] and sum of squared deviations [C] of x [n, C, ...], the last two in float64."""
    dims = [d for d in range(x.dim()) if d != 1]
    variance, mean = torch.var_mean(x, dims, correction=0)
    count = x.numel() // x.shape[1]
    return count, mean.double(), variance.double() * count


def _merge(parts: Sequence[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance of the union of `parts` (Chan, Golub and LeVeque 1979)."""
    total = sum(count for count, _, _ in parts)
    if total < 2:
        raise ValueError(
            f"recalibrate: images: expected at least 2 values per channel of every BatchNorm, got {total}; "
            "give more images"
        )
    mean = torch.stack([count * mean for count, mean, _ in parts]).sum(0) / total
    squares = torch.stack([s + count * (m - mean) ** 2 for count, m, s in parts]).sum(0)
    return mean, squares / (total - 1)


def logits(model: nn.Module, images: Tensor, batch_size: int = 1024) -> Tensor:  # [n, C, H, W] -> [n, classes]
    """Return the model's outputs on `images` in evaluation mode, as float32, without gradients."""
    with evaluating(model):
        return torch.cat([model(batch).float() for batch in torch.split(images, batch_size)])


@dataclass(frozen=True)
class Metrics:
    """How good a prediction is. The `scaled_` values are those after division by `temperature`."""

    accuracy: float
    nll: float
    brier: float
    ece: float
    temperature: float
    scaled_nll: float
    scaled_brier: float
    scaled_ece: float


def metrics(
    prediction: Tensor,  # [n, C]
    labels: Tensor,  # [n]
    validation: tuple[Tensor, Tensor] | None = None,  # [m, C], [m]
) -> Metrics:
    """Return accuracy, NLL, Brier score and ECE over the whole set, raw and temperature-scaled.

    The temperature is the one that minimises the NLL of `validation`, a prediction of the same network or ensemble and
    its labels (Guo et al. 2017, arXiv 1706.04599); for an ensemble that is fitting *after* averaging. Without
    `validation` it is 1. ECE: 15 bins of equal width over the highest probability, weighted by their share of the set.
    """
    temperature = 1.0 if validation is None else fit_temperature(*validation)
    accuracy = 100 * (prediction.argmax(1) == labels).double().mean().item()
    return Metrics(
        accuracy, *_scores(prediction, labels), temperature, *_scores(prediction.double() / temperature, labels)
    )


def _scores(prediction: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Return NLL, Brier score and ECE in percent."""
    # Imported here: it takes seconds, and most of what this module serves needs no metric.
    from torchmetrics.functional.classification import multiclass_calibration_error

    log_probabilities = prediction.double().log_softmax(1)
    probabilities = log_probabilities.exp()
    nll = nn.functional.nll_loss(log_probabilities, labels).item()
    target = nn.functional.one_hot(labels, prediction.shape[1])
    brier = (probabilities - target).square().sum(1).mean().item()
    ece = multiclass_calibration_error(probabilities, labels, prediction.shape[1], n_bins=ECE_BINS, norm="l1")
    return nll, brier, 100 * ece.item()


def fit_temperature(prediction: Tensor, labels: Tensor) -> float:  # [n, C], [n]
    """Return the temperature in [0.05, 20] by which dividing `prediction` gives the smallest NLL.

    The NLL is convex in the inverse temperature, so a bounded search over its logarithm finds the one minimum.
    """
    prediction = prediction.double().log_softmax(1)

    def loss(inverse_log: float) -> float:
        scaled = prediction * 2.0**inverse_log
        return nn.functional.cross_entropy(scaled, labels).item()

    bound = 4.3219  # log2 of 20
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-4})
    return float(2.0**-found.x)


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation (ddof 1; NaN for a single one, or where one is NaN) of `count` groups' metrics."""

    mean: Metrics
    std: Metrics
    count: int


def summarise(results: Sequence[Metrics]) -> Summary:
    """Return mean and standard deviation of every metric over groups. Raises ValueError on an empty list."""
    if not results:
        raise ValueError("summarise: results: expected the metrics of at least one group, got none")
    columns = list(zip(*map(astuple, results), strict=True))
    known = [len(c) > 1 and all(map(math.isfinite, c)) for c in columns]
    deviations = [statistics.stdev(c) if k else math.nan for c, k in zip(columns, known, strict=True)]
    return Summary(Metrics(*map(statistics.fmean, columns)), Metrics(*deviations), len(results))


def kl(p: Tensor, q: Tensor) -> float:  # [n, C], [n, C]
    """Return KL(p || q) in nats, averaged over images; p and q are predictions."""
    p, q = p.double().log_softmax(1), q.double().log_softmax(1)
    return nn.functional.kl_div(q, p, reduction="batchmean", log_target=True).item()


def agreement(p: Tensor, q: Tensor) -> float:  # [n, C], [n, C]
    """Return the percentage of images on which two predictions name the same class."""
    return 100 * (p.argmax(1) == q.argmax(1)).double().mean().item()
