"""Train a network on hard labels, on the teachers' probabilities, or on both.

The distillation loss (Hinton, Vinyals and Dean 2015, arXiv 1503.02531)

    L = (1 - alpha) CE(y, z) + alpha tau^2 KL(q || softmax(z / tau)),    q = mean_t softmax(z_t / tau)

is what the baselines, the fine-tuning of a prediction and the WeightFormer itself minimise. q depends on the image and
its view only, so it is computed once for a bank of fixed views (`soft_targets`) and is free afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from weightformer.evaluate import logits
from weightformer.state import State

ALPHA = 0.7
TEMPERATURE = 2.0


def soft_targets(logits: Tensor, temperature: float = TEMPERATURE) -> Tensor:  # [T, ..., C] -> [..., C]
    """Return the mean over teachers of softmax(logits / temperature)."""
    return (logits / temperature).softmax(-1).mean(0)


def bank_logits(
    model: nn.Module, bank: Tensor, batch_size: int = 1024
) -> Tensor:  # [n, views, C, H, W] -> [n, views, classes]
    """Return a network's logits on every view of every image, in evaluation mode."""
    count, views = bank.shape[:2]
    return logits(model, bank.flatten(0, 1), batch_size).view(count, views, -1)


def distillation_loss(
    student: Tensor,  # logits [n, C]
    labels: Tensor | None,  # [n]
    targets: Tensor | None,  # probabilities [n, C]
    alpha: float = ALPHA,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Return L above, averaged over images. Without labels or without targets the other term stands alone, unweighted.

    The gradient towards q equals the mean of the gradients towards each teacher; the values differ by a constant.
    """
    if targets is None:
        if labels is None:
            raise ValueError("distillation_loss: labels, targets: expected at least one of them, got None for both")
        return nn.functional.cross_entropy(student, labels)
    log_student = (student / temperature).log_softmax(1)
    soft = temperature**2 * nn.functional.kl_div(log_student, targets, reduction="batchmean")
    if labels is None:
        return soft
    return (1 - alpha) * nn.functional.cross_entropy(student, labels) + alpha * soft


def finetune(
    model: nn.Module,
    bank: Tensor,  # [n, views, C, H, W]
    labels: Tensor | None,  # [n]
    targets: Tensor | None = None,  # [n, views, classes]
    *,
    steps: int,
    start: Mapping[str, Tensor] | None = None,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
    alpha: float = ALPHA,
    temperature: float = TEMPERATURE,
    weight_decay: float = 0.0,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> State:
    """Return the state of `model` after `steps` of AdamW with a cosine schedule to 0; `model` is not changed.

    Every step draws `batch_size` different images (all, if there are fewer) and one view for each. BatchNorm normalises
    by the batch; re-estimate its statistics afterwards (`evaluate.recalibrate`).

    bank: views of images; a plain set of images is a bank of one view, images[:, None].
    labels: None to learn from the targets alone.  targets: `soft_targets` of the teachers at the same temperature; None
    for plain cross-entropy.  start: the state to start from, else the model's own.
    seed: two calls with the same arguments give the same state.  progress: called with the loss after every step.

    Raises ValueError where bank, labels and targets do not fit together.
    """
    _check(bank, labels, targets)
    model = deepcopy(model)
    if start is not None:
        model.load_state_dict(start)
    model.train().to(memory_format=torch.channels_last)  # faster for small convolutions on a CPU as well
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    generator = torch.Generator().manual_seed(seed)
    count, views = bank.shape[:2]
    with torch.random.fork_rng(devices=_cuda_devices(bank)):
        torch.manual_seed(seed)  # dropout
        for _ in range(steps):
            image = torch.randperm(count, generator=generator)[:batch_size]
            view = torch.randint(views, image.shape, generator=generator)
            loss = distillation_loss(
                model(bank[image, view].contiguous(memory_format=torch.channels_last)),
                None if labels is None else labels[image],
                None if targets is None else targets[image, view],
                alpha,
                temperature,
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(loss.item())
    model.to(memory_format=torch.contiguous_format)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def _check(bank: Tensor, labels: Tensor | None, targets: Tensor | None) -> None:
    if bank.dim() != 5:
        raise ValueError(
            f"finetune: bank: expected [n, views, C, H, W], got {list(bank.shape)}; of plain images pass x[:, None]"
        )
    if labels is None and targets is None:
        raise ValueError("finetune: labels, targets: expected at least one of them, got None for both")
    if labels is not None and labels.shape != bank.shape[:1]:
        raise ValueError(f"finetune: labels: expected one for each of {len(bank)} images, got {list(labels.shape)}")
    if targets is not None and targets.shape[:2] != bank.shape[:2]:
        raise ValueError(
            f"finetune: targets: expected [{bank.shape[0]}, {bank.shape[1]}, classes] like the bank, "
            f"got {list(targets.shape)}; see bank_logits and soft_targets"
        )


def _cuda_devices(tensor: Tensor) -> Sequence[torch.device]:
    return [tensor.device] if tensor.is_cuda else []
