"""MultiheadAttention is torch's: parameters, outputs, weights and all gradients; and what it can do beyond."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wfkernels
from wfkernels.nn import MultiheadAttention, RelativePositionBias

E, HEADS, BATCH, QUERIES, KEYS = 12, 3, 2, 4, 6


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def pair(**options: Any) -> tuple[nn.MultiheadAttention, MultiheadAttention]:
    """Torch's module and ours with the same parameters, none of them 0."""
    theirs = nn.MultiheadAttention(E, HEADS, **options, dtype=torch.float64)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours = MultiheadAttention(E, HEADS, **options, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(module: nn.MultiheadAttention, batched: bool = True, keys: int = KEYS) -> list[Tensor]:
    """Query, key and value in the order of the module."""
    lead = (BATCH,) if batched else ()
    found = [random(*lead, n, w) for n, w in ((QUERIES, E), (keys, module.kdim), (keys, module.vdim))]
    return [x if module.batch_first or not batched else x.transpose(0, 1) for x in found]


def results(module: nn.MultiheadAttention, given: list[Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
    """Output, weights, and the gradients of inputs, parameters and floating masks."""
    torch.manual_seed(1)
    leaves = {n: x.detach().clone().requires_grad_() for n, x in zip(("query", "key", "value"), given, strict=True)}
    if given[0] is given[1]:
        leaves = dict.fromkeys(leaves, leaves["query"])
    masks = {n: x.detach().clone() for n, x in options.items() if isinstance(x, Tensor)}
    learned = {n: x.requires_grad_() for n, x in masks.items() if x.is_floating_point()}
    out, weights = module(*leaves.values(), **{**options, **masks})
    total = (out * random(*out.shape)).sum()
    found = {"out": out}
    if weights is not None:
        total, found["weights"] = total + (weights * random(*weights.shape)).sum(), weights
    wanted = {**leaves, **learned, **dict(module.named_parameters())}
    gradients = torch.autograd.grad(total, list(wanted.values()), materialize_grads=True)
    return found | {f"gradient of {n}": g for n, g in zip(wanted, gradients, strict=True)}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, msg=lambda m, name=name: f"{name}: {m}")


MODULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False, "batch_first": True},
    "sizes of key and value": {"kdim": 5, "vdim": 7},
    "size of value": {"vdim": 7, "batch_first": True, "bias": False},
    "learned key": {"add_bias_kv": True},
    "zero key": {"add_zero_attn": True, "batch_first": True},
    "learned and zero key, own sizes": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 5, "batch_first": True},
}
PADDING = torch.tensor([[False] * KEYS, [False, True, False, False, True, True]])
SHUT = torch.rand(QUERIES, KEYS) < 0.4
SHUT[:, 0] = False
SHUT_PER_HEAD = torch.rand(BATCH * HEADS, QUERIES, KEYS) < 0.4
SHUT_PER_HEAD[:, :, 0] = False
CAUSAL = torch.ones(QUERIES, KEYS).triu(1).bool()


def additive(mask: Tensor) -> Tensor:
    return random(*mask.shape).masked_fill(mask, -torch.inf)


MASKS: dict[str, dict[str, Any]] = {
    "no mask": {},
    "padding": {"key_padding_mask": PADDING},
    "float padding": {"key_padding_mask": additive(PADDING)},
    "mask": {"attn_mask": SHUT},
    "float mask": {"attn_mask": additive(SHUT)},
    "mask per head": {"attn_mask": SHUT_PER_HEAD},
    "float mask per head": {"attn_mask": additive(SHUT_PER_HEAD)},
    "padding and mask": {"key_padding_mask": PADDING, "attn_mask": SHUT},
    "float padding and float mask": {"key_padding_mask": additive(PADDING), "attn_mask": additive(SHUT_PER_HEAD)},
    "padding and float mask": {"key_padding_mask": PADDING, "attn_mask": additive(SHUT)},
    "causal": {"attn_mask": CAUSAL, "is_causal": True},
    "causal and padding": {"attn_mask": CAUSAL, "is_causal": True, "key_padding_mask": PADDING},
}
WEIGHTS: dict[str, dict[str, bool]] = {
    "no weights": {"need_weights": False},
    "weights": {},
    "weights per head": {"average_attn_weights": False},
}


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("module", MODULES)
def test_as_torch(module: str, mask: str, weights: str) -> None:
    theirs, ours = pair(**MODULES[module])
    given, options = inputs(theirs), {**MASKS[mask], **WEIGHTS[weights]}
    found = results(ours, given, options)
    added = theirs.bias_k is not None or theirs.add_zero_attn
    if added and options.get("is_causal") and weights == "no weights" and "key_padding_mask" not in options:
        # Here torch forgets the mask for its hint, by which the keys it added stand behind every query.
        options = {**options, "is_causal": False}
    assert_same(found, results(theirs, given, options))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("mask", ["no mask", "padding", "float mask", "mask per head"])
@pytest.mark.parametrize("module", ["plain", "batch first", "learned and zero key, own sizes"])
def test_without_a_batch_as_torch(module: str, mask: str, weights: str) -> None:
    theirs, ours = pair(**MODULES[module])
    given, options = inputs(theirs, batched=False), {**MASKS[mask], **WEIGHTS[weights]}
    if mask == "padding":
        options["key_padding_mask"] = PADDING[1]
    if mask == "mask per head":
        options["attn_mask"] = SHUT_PER_HEAD[:HEADS]
    assert_same(results(ours, given, options), results(theirs, given, options))


@pytest.mark.parametrize("module", ["plain", "batch first", "no bias"])
def test_self_attention_as_torch(module: str) -> None:
    theirs, ours = pair(**MODULES[module])
    x = random(BATCH, KEYS, E)
    assert_same(results(ours, [x, x, x], {}), results(theirs, [x, x, x], {}))


@pytest.mark.parametrize("options", MODULES.values(), ids=list(MODULES))
def test_state_dicts_load_both_ways_and_start_equal(options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    theirs = nn.MultiheadAttention(E, HEADS, **options)
    torch.manual_seed(3)
    ours = MultiheadAttention(E, HEADS, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    copied = copy.deepcopy(ours)
    x = inputs(theirs)
    assert torch.equal(copied(*(t.float() for t in x))[0], ours(*(t.float() for t in x))[0])


def test_a_query_that_sees_nothing_gives_the_bias_of_out_proj() -> None:
    theirs, ours = pair()
    shut = SHUT.clone()
    shut[1] = True
    given = inputs(theirs)
    results_of_ours = results(ours, given, {"attn_mask": shut})
    assert torch.equal(results_of_ours["out"][1], ours.out_proj.bias.expand(BATCH, E))
    assert not results_of_ours["weights"][:, 1].any()
    assert all(x.isfinite().all() for x in results_of_ours.values())
    assert theirs(*given, attn_mask=shut)[0][1].isnan().all()  # what the class documents
    options = {"attn_mask": shut, "need_weights": False}
    assert_same(results(ours, given, options), results(theirs, given, options))


@pytest.mark.parametrize("add_zero_attn", [False, True], ids=["", "zero key"])
def test_is_causal_needs_no_mask_and_joins_one(add_zero_attn: bool) -> None:
    theirs, ours = pair(add_zero_attn=add_zero_attn)
    given = inputs(theirs)
    for mask in (None, additive(SHUT)):
        both = CAUSAL if mask is None else mask.masked_fill(CAUSAL, -torch.inf)
        found, wanted = ours(*given, attn_mask=mask, is_causal=True), theirs(*given, attn_mask=both)
        torch.testing.assert_close(found, wanted)


def test_dropout_is_the_same_in_output_and_weights() -> None:
    _, ours = pair(dropout=0.5, batch_first=True)
    query, key, value = inputs(ours)
    out, weights = ours(query, key, value, average_attn_weights=False)
    assert (weights == 0).any() and (weights != 0).any()
    bias = ours.in_proj_bias[2 * E :]
    projected = (value @ ours.in_proj_weight[2 * E :].T + bias).view(BATCH, KEYS, HEADS, -1).transpose(1, 2)
    joined = (weights @ projected).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(out, ours.out_proj(joined))
    assert not torch.equal(out, ours(query, key, value)[0])
    ours.eval()
    assert torch.equal(ours(query, key, value)[0], ours(query, key, value)[0])


class Sigmoid(nn.Module):
    """A learned gate."""

    def __init__(self, *size: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(random(*size))

    def forward(self) -> Tensor:
        return self.theta.sigmoid()


def t5() -> RelativePositionBias:
    return RelativePositionBias.t5(HEADS, 8, 5).double()


class Distance(nn.Module):
    """A gate by distance, open on the diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(random(HEADS, 1, 1, 1, 3))

    def forward(self) -> wfkernels.BucketTable:
        return wfkernels.BucketTable(self.theta.sigmoid(), torch.tensor([0, 2, 1]), diagonal_open=True)


def written_out(term: Any) -> Tensor:
    """What a module holds, [H or 1, L, S]."""
    if isinstance(term, RelativePositionBias):
        return term.dense(QUERIES, KEYS)
    if isinstance(term, Distance):
        difference = torch.arange(QUERIES)[:, None] - torch.arange(KEYS)
        entry = torch.tensor([0, 2, 1])[difference.clamp(-1, 1) + 1]
        return term.theta.sigmoid().flatten(1)[:, entry].masked_fill(difference == 0, 1.0)
    return (term() if isinstance(term, nn.Module) else term)[:, :QUERIES, :KEYS]


def as_mask(bias: list[Tensor], gate: list[Tensor], masks: dict[str, Tensor]) -> Tensor:
    """All that bears on the scores as one additive mask of torch's module, [N * H, L, S]."""
    total = torch.zeros(BATCH, HEADS, QUERIES, KEYS, dtype=torch.float64)
    for term in (*bias, *(g.log() for g in gate)):
        total = total + term
    for name, mask in masks.items():
        mask = mask[:, None, None] if name == "key_padding_mask" else mask
        total = total + mask if mask.is_floating_point() else total.masked_fill(mask, -torch.inf)
    return total.flatten(0, 1)


BIASES: dict[str, Callable[[], Any]] = {
    "no bias": lambda: None,
    "table": t5,
    "parameter": lambda: nn.Parameter(random(HEADS, 7, 7)),
    "module": lambda: Sigmoid(1, 7, 7),
}
GATES: dict[str, Callable[[], Any]] = {
    "no gate": lambda: None,
    "table": Distance,
    "parameter": lambda: nn.Parameter(torch.rand(HEADS, 7, 7, dtype=torch.float64)),
    "module": lambda: Sigmoid(1, 7, 7),
}


@pytest.mark.parametrize("masks", ["no mask", "padding and mask", "padding and float mask"])
@pytest.mark.parametrize("more_keys", [False, True], ids=["", "more keys"])
@pytest.mark.parametrize("called", [False, True], ids=["", "the call's own"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("bias", BIASES)
def test_learned_bias_and_gate(bias: str, gate: str, called: bool, more_keys: bool, masks: str) -> None:
    """Outputs, weights and gradients are those of torch's module with bias + log gate as its mask."""
    options: dict[str, Any] = {"add_bias_kv": more_keys, "add_zero_attn": more_keys, "batch_first": True}
    theirs, plain = pair(**options)
    held = {"attn_bias": BIASES[bias](), "attn_gate": GATES[gate]()}
    ours = MultiheadAttention(E, HEADS, **options, dtype=torch.float64, **held)
    missing, unexpected = ours.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(name.startswith(("attn_bias", "attn_gate")) for name in missing)

    tensors = [*inputs(theirs), random(BATCH, 1, QUERIES, KEYS), torch.rand(HEADS, 1, KEYS, dtype=torch.float64)]
    *given, own_bias, own_gate = (x.requires_grad_() for x in tensors)
    own = {"attn_bias": own_bias, "attn_gate": own_gate} if called else {}
    mask = as_mask(
        [written_out(t) for t in (held["attn_bias"], own.get("attn_bias")) if t is not None],
        [written_out(t) for t in (held["attn_gate"], own.get("attn_gate")) if t is not None],
        MASKS[masks],
    )
    found = ours(*given, average_attn_weights=False, **MASKS[masks], **own)
    wanted = theirs(*given, average_attn_weights=False, attn_mask=mask)
    learned = [p for name, p in ours.named_parameters() if name in missing]
    directions = [random(*x.shape) for x in wanted]
    both = []
    for outs, module in ((found, ours), (wanted, theirs)):
        parameters = [dict(module.named_parameters())[name] for name, _ in theirs.named_parameters()]
        leaves = [*given, *own.values(), *learned, *parameters]
        both.append((*outs, *torch.autograd.grad(outs, leaves, directions, materialize_grads=True)))
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b)


def test_a_closed_gate_has_weights_0_and_a_gradient() -> None:
    gate = nn.Parameter(torch.ones(1, KEYS, KEYS, dtype=torch.float64))
    with torch.no_grad():
        gate[0, :, 2] = 0.0
    module = MultiheadAttention(E, HEADS, batch_first=True, dtype=torch.float64, attn_gate=gate)
    x = random(BATCH, KEYS, E)
    out, weights = module(x, x, x, average_attn_weights=False)
    assert not weights[..., 2].any()
    direction = random(*out.shape)
    (through_out,) = torch.autograd.grad((out * direction).sum(), gate, retain_graph=True)
    weight_direction = random(*weights.shape)
    (through_weights,) = torch.autograd.grad((weights * weight_direction).sum(), gate)
    step = 1e-6
    for j in range(KEYS):
        with torch.no_grad():
            gate[0, j, 2] = step
            moved, moved_weights = module(x, x, x, average_attn_weights=False)
            gate[0, j, 2] = 0.0
        for new, old, along, gradient in (
            (moved, out, direction, through_out),
            (moved_weights, weights, weight_direction, through_weights),
        ):
            # A forward difference: wrong by about the step.
            torch.testing.assert_close(((new - old) * along).sum() / step, gradient[0, j, 2], rtol=1e-4, atol=1e-4)


def test_nested_as_every_sequence_on_its_own() -> None:
    for held in ({}, {"attn_bias": t5()}, {"attn_bias": nn.Parameter(random(HEADS, 6, 6))}):
        ours = MultiheadAttention(E, HEADS, batch_first=True, kdim=5, dtype=torch.float64, **held)
        lengths = (2, 6, 0, 3)
        query, value = (random(sum(lengths), E).requires_grad_() for _ in range(2))
        key = random(sum(lengths), 5).requires_grad_()
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        nested = [torch.nested.nested_tensor_from_jagged(x, offsets) for x in (query, key, value)]
        out, weights = ours(*nested, need_weights=False)
        assert weights is None and out.shape == nested[0].shape
        wanted = [
            ours(query[a:b], key[a:b], value[a:b], need_weights=False)[0]
            for a, b in itertools.pairwise(offsets.tolist())
            if b > a
        ]
        leaves = [query, key, value, *ours.parameters()]
        both = [(x, *torch.autograd.grad(x.sin().sum(), leaves)) for x in (out.values(), torch.cat(wanted))]
        for a, b in zip(*both, strict=True):
            torch.testing.assert_close(a, b)


def test_nested_windows() -> None:
    ours = MultiheadAttention(E, HEADS, dtype=torch.float64, attn_bias=RelativePositionBias.beit(HEADS, 2).double())
    x = random(3 * 5, E)
    nested = torch.nested.nested_tensor_from_jagged(x, torch.arange(4) * 5)
    out, _ = ours(nested, nested, nested, need_weights=False)
    dense = x.view(3, 5, E).transpose(0, 1)
    torch.testing.assert_close(out.values().view(3, 5, E).transpose(0, 1), ours(dense, dense, dense)[0])


def test_in_torchs_encoder_the_bias_counts_in_evaluation_too() -> None:
    encoder_layer = nn.TransformerEncoderLayer(E, 2, 16, batch_first=True, dropout=0.0)
    table = RelativePositionBias.t5(2, 8, 6)
    nn.init.normal_(table.weight)
    encoder_layer.self_attn = MultiheadAttention(E, 2, batch_first=True, attn_bias=table)
    encoder = nn.TransformerEncoder(encoder_layer, 2, enable_nested_tensor=False)
    x, padding = torch.randn(BATCH, KEYS, E), PADDING
    trained = encoder(x, src_key_padding_mask=padding)
    encoder.eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder(x, src_key_padding_mask=padding), trained)
        nn.init.zeros_(encoder.layers[0].self_attn.attn_bias.weight)
        assert not torch.allclose(encoder(x, src_key_padding_mask=padding), trained)


COMPILED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "causal, own sizes": ({"kdim": 5, "vdim": 7}, {"is_causal": True, "need_weights": False}),
    "padding and mask, more keys": ({"add_bias_kv": True, "add_zero_attn": True}, MASKS["padding and mask"]),
    "table, padding": ({"attn_bias": t5}, {**MASKS["padding"], "average_attn_weights": False}),
    "gate": ({"attn_gate": lambda: Sigmoid(1, 7, 7)}, MASKS["float mask"]),
}


@pytest.mark.parametrize("case", COMPILED)
def test_compiles_in_one_graph(case: str) -> None:
    settings, options = COMPILED[case]
    settings = {n: x() if callable(x) else x for n, x in settings.items()}
    module = MultiheadAttention(E, HEADS, dtype=torch.float64, **settings)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    given = inputs(module)
    found = results(_Named(module, compiled), given, options)  # type: ignore[arg-type]
    assert_same(found, results(module, given, options))


class _Named:
    """A compiled module whose parameters have their own names."""

    def __init__(self, module: nn.Module, compiled: Callable[..., Any]) -> None:
        self.named_parameters, self.compiled = module.named_parameters, compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.compiled(*args, **kwargs)


def test_compiles_in_one_graph_with_dropout() -> None:
    module = MultiheadAttention(E, HEADS, 0.5, batch_first=True, attn_bias=RelativePositionBias.t5(HEADS))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(BATCH, KEYS, E)
    first, second = compiled(x, x, x)[0], compiled(x, x, x)[0]
    assert not torch.equal(first, second)


def test_exports_with_gradients() -> None:
    module = MultiheadAttention(E, HEADS, batch_first=True, attn_bias=RelativePositionBias.t5(HEADS))
    x = torch.randn(BATCH, KEYS, E)
    exported = torch.export.export(module, (x, x, x), {"key_padding_mask": PADDING}).module()
    both = []
    for run in (exported, module):
        out, _ = run(x, x, x, key_padding_mask=PADDING)
        both.append((out, *torch.autograd.grad(out.sin().sum(), list(run.parameters()))))
    torch.testing.assert_close(*both)


def test_autocast_and_half_precision() -> None:
    module = MultiheadAttention(E, HEADS, batch_first=True, attn_bias=RelativePositionBias.t5(HEADS))
    x = torch.randn(BATCH, KEYS, E)
    with torch.autocast("cpu", torch.bfloat16):
        out, weights = module(x, x, x, key_padding_mask=PADDING)
    assert out.dtype == weights.dtype == torch.bfloat16
    # The rounding of bfloat16 in five products of numbers around one.
    torch.testing.assert_close(out.float(), module(x, x, x, key_padding_mask=PADDING)[0], rtol=0.05, atol=0.05)
    half = copy.deepcopy(module).bfloat16()
    assert half(*[x.bfloat16()] * 3)[0].dtype == torch.bfloat16


def test_explains_itself() -> None:
    module = MultiheadAttention(E, HEADS)
    x = torch.randn(KEYS, BATCH, E)
    assert "attention: " in wfkernels.explain(lambda: module(x, x, x)[0].sum().backward())


BUILD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"embed_dim": 0}, ValueError, "embed_dim: expected at least 1, got 0"),
    ({"embed_dim": 12.0}, TypeError, "embed_dim: expected int, got float"),
    ({"num_heads": True}, TypeError, "num_heads: expected int, got bool"),
    ({"num_heads": 5}, ValueError, "num_heads: expected a divisor of embed_dim=12, got 5"),
    ({"kdim": 0}, ValueError, "kdim: expected at least 1, got 0"),
    ({"vdim": "7"}, TypeError, "vdim: expected int, got str"),
    ({"dropout": 1.0}, ValueError, "dropout: expected a probability in [0, 1), got 1.0"),
    (
        {"attn_bias": torch.zeros(3, 6, 6)},
        TypeError,
        "attn_bias: expected an nn.Module, an nn.Parameter or None, got Tensor",
    ),
    (
        {"attn_gate": nn.Parameter(torch.ones(2, 6, 6))},
        ValueError,
        "attn_gate: expected a floating-point [3 or 1, M, M]",
    ),
]


@pytest.mark.parametrize(("wrong", "error", "message"), BUILD, ids=[message for _, _, message in BUILD])
def test_a_wrong_module_says_what_to_do(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^MultiheadAttention: {re.escape(message)}") as caught:
        MultiheadAttention(**{"embed_dim": E, "num_heads": HEADS, **wrong})
    assert "\n" not in str(caught.value)


Q, K = torch.zeros(QUERIES, BATCH, E), torch.zeros(KEYS, BATCH, E)
JAGGED = torch.nested.nested_tensor_from_jagged(torch.zeros(5, E), torch.tensor([0, 2, 5]))
NESTED = {"query": JAGGED, "key": JAGGED, "value": JAGGED, "need_weights": False}
CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"query": [0.0]}, TypeError, "query: expected a torch.Tensor, got list"),
    ({"key": K.long()}, TypeError, "key: expected a floating-point tensor, got torch.int64"),
    ({"query": Q[None]}, ValueError, "query: expected two dimensions, or three with a batch, got [1, 4, 2, 12]"),
    ({"query": Q[:, 0]}, ValueError, "key: expected 2 dimensions like query, got 3"),
    ({"query": Q[..., :5]}, ValueError, "query: expected 12 features, got shape [4, 2, 5]"),
    ({"value": K[..., :5]}, ValueError, "value: expected 12 features, got shape [6, 2, 5]"),
    ({"value": K[:5]}, ValueError, "value: expected shape [6, 2, 12] like key, got [5, 2, 12]"),
    (
        {"query": Q[:, :1]},
        ValueError,
        "key: expected a batch of 1 like query, got 2, read as [tokens, batch, features]",
    ),
    ({"query": Q.double()}, ValueError, "query: expected dtype torch.float32 like parameters, got torch.float64"),
    ({"query": Q.to("meta")}, ValueError, "query: expected a tensor on cpu like parameters, got one on meta"),
    ({"attn_mask": SHUT.tolist()}, TypeError, "attn_mask: expected a torch.Tensor or None, got list"),
    ({"attn_mask": SHUT.long()}, TypeError, "attn_mask: expected bool or floating point, got torch.int64"),
    ({"attn_mask": SHUT.T}, ValueError, "attn_mask: expected shape [4, 6] or [6, 4, 6], got [6, 4]"),
    ({"attn_mask": SHUT_PER_HEAD[:3]}, ValueError, "attn_mask: expected shape [4, 6] or [6, 4, 6], got [3, 4, 6]"),
    ({"key_padding_mask": PADDING.T}, ValueError, "key_padding_mask: expected shape [2, 6], got [6, 2]"),
    (
        {"key_padding_mask": PADDING.int()},
        TypeError,
        "key_padding_mask: expected bool or floating point, got torch.int32",
    ),
    ({"need_weights": None}, TypeError, "need_weights: expected bool, got NoneType"),
    ({"average_attn_weights": 1}, TypeError, "average_attn_weights: expected bool, got int"),
    ({"is_causal": CAUSAL}, TypeError, "is_causal: expected bool, got Tensor"),
    ({**NESTED, "key": K}, ValueError, "key: expected a nested tensor like the others, got a dense one"),
    ({**NESTED, "need_weights": True}, ValueError, "need_weights: expected False with nested tensors"),
    ({**NESTED, "attn_mask": SHUT}, ValueError, "attn_mask: expected None with nested tensors, got Tensor"),
    (
        {**NESTED, "attn_bias": torch.zeros(1, 3, 3)},
        ValueError,
        "attn_bias: expected None with nested tensors, got Tensor",
    ),
    (
        {**NESTED, "query": JAGGED.unflatten(-1, (3, 4))},
        ValueError,
        "query: expected 3 dimensions, jagged in dimension 1, got 4",
    ),
]


@pytest.mark.parametrize(("wrong", "error", "message"), CALLS, ids=[message for _, _, message in CALLS])
def test_a_wrong_call_says_what_to_do(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    module = MultiheadAttention(E, HEADS)
    with pytest.raises(error, match=f"^MultiheadAttention: {re.escape(message)}") as caught:
        module(**{"query": Q, "key": K, "value": K, **wrong})
    assert "\n" not in str(caught.value)


def test_a_window_of_another_size_is_refused_also_where_it_is_written_out() -> None:
    module = MultiheadAttention(E, HEADS, attn_bias=RelativePositionBias.swin(HEADS, 3))
    for mask in (None, torch.zeros(KEYS, KEYS)):
        with pytest.raises(ValueError, match=r"attn_bias\.position: expected \[6\] entries, one per token, got \[9\]"):
            module(K, K, K, attn_mask=mask)


def test_nested_tensors_exclude_keys_that_the_module_adds() -> None:
    for options in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        with pytest.raises(ValueError, match="^MultiheadAttention: query: expected dense tensors with add_bias_kv"):
            MultiheadAttention(E, HEADS, **options)(**NESTED)
