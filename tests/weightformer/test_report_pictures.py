"""The report's pictures: they build whatever a comparison holds, and no text in them covers another or is cut off."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from weightformer.baselines import Cost
from weightformer.compare.evidence import Agreement, BucketedGate, DenseGate, Evidence, Matrix, RowGates, Weights
from weightformer.compare.reliability import Bins, Reliability
from weightformer.compare.table import ONE_PASS, Comparison, Row
from weightformer.evaluate import Metrics
from weightformer.report import pictures
from weightformer.report.pictures import Picture, agreement, calibration, costs, gates, labels, style, weights


def row(
    name: str,
    *accuracies: float,
    kind: str = "baseline",
    steps: int = 0,
    passes: int = 1,
    seconds: float = 0.1,
    binned: bool = True,
) -> Row:
    found = tuple(Metrics(a, 0.2, 0.1, 1.5, 0.9, 0.2, 0.1, 1.0) for a in accuracies)
    cost = Cost(steps, passes, 100 * passes)
    return Row(name, kind, found, cost, seconds, reliability=RELIABILITY if binned else None)  # type: ignore[arg-type]


BINS = Bins((0, 0, 3, 40, 900), (0.0, 0.0, 1.5, 28.0, 850.0), (0, 0, 1, 30, 860))
RELIABILITY = Reliability(BINS, BINS)
ROWS = [
    row("single teacher", 94.0, 94.4),
    row("ensemble", 95.2, 95.6, passes=3),
    row("weight mean", 30.0, 40.0, seconds=0.0),
    row("distillation", 95.0, 95.1, steps=400, seconds=2.0),
    row(ONE_PASS, 95.3, 95.5, kind="weightformer"),
    row("fine-tuned", 95.4, 95.5, kind="weightformer", steps=25),
    row("constant student", 95.7, 95.7, kind="control", steps=1500),
    row("untrained", 9.0, 14.0, kind="control"),
]


def matrix(rows: int, columns: int, seed: int = 0) -> Matrix:
    values = np.random.RandomState(seed).rand(rows, columns)
    return tuple(map(tuple, values.tolist()))


def evidence(groups: int = 2, teachers: int = 3, layers: int = 4, cross: int = 1) -> Evidence:
    length = cross + 5 * teachers
    return Evidence(
        flop=851_328,
        agreement=Agreement(matrix(groups, groups), matrix(groups, groups, 1)),
        weights=Weights(
            "conv.weight", ("teacher 1", "teachers' mean", "predicted student"), (matrix(8, 20),) * 3, (8, 40)
        ),
        row_gates=RowGates(
            tuple(f"features.block{i}.conv" for i in range(layers)),
            tuple(4 * 2**i for i in range(layers)),
            tuple(matrix(teachers, 4 * 2**i) for i in range(layers)),
        ),
        dense_gate=DenseGate("the paper's form", cross, 5, teachers, matrix(length, length), 0.88),
        bucketed_gate=BucketedGate(
            ONE_PASS,
            ((-40, -9), (-8, -2), (-1, -1), (0, 0), (1, 1), (2, 8), (9, 40)),
            ("rows of the same teacher", "rows of two teachers", "cross token reads rows", "rows read the cross token"),
            matrix(4, 7),
            0.88,
        ),
    )


def comparison(rows: Sequence[Row] = ROWS, found: Evidence | None = None) -> Comparison:
    groups = len(rows[0].metrics) if rows else 2
    return Comparison("t", 0, groups, list(rows), evidence=evidence(groups) if found is None else found)


def methods(*rows: Row) -> Comparison:
    """A comparison of which nothing but the table is known."""
    return comparison([replace(r, reliability=None) for r in rows], Evidence(flop=851_328))


def looked_into(found: Evidence) -> Comparison:
    """A comparison of which nothing but the evidence is known."""
    return comparison([], found)


LONG = "distillation of the prior-matched ensemble of logits from the weight mean of all teachers, 12,000 steps"
CASES = {
    "an ordinary comparison": comparison(),
    "one group, no spread": comparison([replace(r, metrics=r.metrics[:1]) for r in ROWS]),
    "a method without a number": methods(*ROWS, row("broken", math.nan, math.nan)),
    "no time and no steps anywhere": methods(*[row(f"m{i}", 90.0 + i, 91.0 + i, seconds=0.0) for i in range(4)]),
    "one method": comparison(ROWS[:1]),
    "all alike": methods(*[row(f"method {i}", 95.0, 95.0) for i in range(5)]),
    "many methods": methods(
        *[
            row(f"method number {i} + pm", 60 + i / 2, 64 + i / 2, passes=1 + 2 * (i % 2), steps=50 * (i % 3))
            for i in range(40)
        ]
    ),
    "long names": comparison([replace(r, method=f"{LONG} {i}") for i, r in enumerate(ROWS)]),
    "names that look like formulas": methods(*[replace(r, method=f"$x_{i}$ <b>&\\frac") for i, r in enumerate(ROWS)]),
    "many costs": methods(*[row(f"method {i}", 90 + i, 90.5 + i, steps=3 * 2**i, passes=i + 1) for i in range(9)]),
    "far apart in time": methods(row("a", 90.0, 91.0, seconds=1e-6), row("b", 91.0, 92.0, seconds=1e5)),
    "many groups": looked_into(evidence(groups=32)),
    "one teacher, one layer, no cross token": looked_into(evidence(groups=1, teachers=1, layers=1, cross=0)),
    "many teachers and layers": looked_into(evidence(teachers=8, layers=9)),
    "NaN in the evidence": looked_into(
        Evidence(
            agreement=Agreement(((math.nan,) * 2,) * 2, ((math.nan, 1.0), (2.0, math.nan))),
            weights=Weights("w", ("a",), (((math.nan, 1.0), (0.5, -1.0)),), (2, 2)),
        )
    ),
    "constants in the evidence": looked_into(
        Evidence(
            agreement=Agreement(((0.5,) * 2,) * 2, ((99.0,) * 2,) * 2),
            weights=Weights("w", ("a", "teachers' mean"), (((0.0,) * 3,) * 2,) * 2, (2, 3), of_base=True),
            dense_gate=DenseGate("m", 0, 2, 1, ((1.0, 0.88), (0.88, 1.0)), 0.88),
        )
    ),
}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that becomes a picture."""
    kept: list[Figure] = []
    original = style.picture

    def picture(of: Figure, *texts: str) -> Picture:
        kept.append(of)
        return original(of, *texts)

    monkeypatch.setattr(style, "picture", picture)
    return kept


def drawn(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Bbox]]:
    """Draw a figure; return its texts, each with the box that its letters take."""
    found: list[tuple[str, Bbox]] = []
    original = Text.draw

    def draw(self: Text, renderer: object) -> None:
        if self.get_visible() and self.get_text().strip():
            found.append((self.get_text(), Text.get_window_extent(self, renderer)))  # type: ignore[arg-type]
        original(self, renderer)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", draw)
        with style.styled():
            figure.canvas.draw()
    return found


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CASES)
def test_no_text_is_cut_off_or_covers_another(
    case: str, figures: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pictures.of_results(CASES[case]) + pictures.of_gates(CASES[case])
    assert len(figures) == len(made) > 0
    for figure, picture in zip(figures, made, strict=True):
        width, height = figure.get_size_inches() * 72
        texts = drawn(figure, monkeypatch)
        assert texts
        for i, (text, box) in enumerate(texts):
            inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width + 0.5 and box.y1 <= height + 0.5
            assert inside, f"{picture.title}: {text!r} is cut off at {box}"
            for other, another in texts[:i]:
                across = min(box.x1, another.x1) - max(box.x0, another.x0)
                along = min(box.y1, another.y1) - max(box.y0, another.y0)
                assert across < 1 or along < 1, f"{picture.title}: {text!r} covers {other!r}"
        check(picture)


def check(picture: Picture) -> None:
    """A picture says what it shows, and brings everything that it needs."""
    assert picture.title and picture.caption.endswith(".") and picture.alt.endswith(".")
    assert len(picture.alt) > 40 and "\n" not in picture.alt
    kind, content = picture.source.split(",", 1)
    assert kind == "data:image/svg+xml;base64"
    text = base64.b64decode(content).decode()
    assert f'width="{picture.width * 0.75:g}pt"' in text
    assert not re.search(r'(href|src)="(?!#|data:)', text)  # nothing from elsewhere


# Numbers of things and pure numbers: what has no unit. Any other label says its unit.
WITHOUT_UNIT = {
    "ensemble of group", "student of group", "neuron", "weight of the neuron", "weight", "difference to the base",
    "row", "teacher", "weight of the teacher", "gate (0 closed, 1 open)", "gate \u2212 0.880, where it started",
    "reads", "is read", "is read (the first token: from earlier layers)",
    "number of the reading neuron \u2212 number of the one that is read (logarithmic beyond 8)",
}  # fmt: skip
UNITS = re.compile(r"%|\b(images|nats|passes|seconds|steps)\b")


def labelled(axes: Axes, axis: Axis) -> str:
    """The label of an axis: its own, that of a panel in line with it, or that of the whole broken scale."""
    across = axis.axis_name == "x"

    def ends(of: Axes) -> tuple[float, float]:
        box = of.get_position()
        return (box.x0, box.x1) if across else (box.y0, box.y1)

    assert axes.figure is not None
    in_line = [other for other in axes.figure.axes if other is not axes and ends(other) == pytest.approx(ends(axes))]
    labels = [axis.get_label_text(), *(each.get_xlabel() if across else each.get_ylabel() for each in in_line)]
    labels += [text.get_text() for text in axes.get_figure(root=True).texts if text.get_rotation() == 90 and not across]
    return next((label for label in labels if label), "")


@pytest.mark.parametrize("case", CASES)
def test_every_axis_with_numbers_has_a_label_and_a_unit_where_there_is_one(case: str, figures: list[Figure]) -> None:
    made = pictures.of_results(CASES[case]) + pictures.of_gates(CASES[case])
    for figure, picture in zip(figures, made, strict=True):
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                if any(tick.get_visible() and tick.get_text() for tick in axis.get_ticklabels()):
                    label = labelled(axes, axis)
                    assert label in WITHOUT_UNIT or UNITS.search(label), f"{picture.title}: {axis.axis_name}: {label!r}"


# Okabe and Ito, https://jfly.uni-koeln.de/color; cividis: Nunez et al. 2018; RdBu: colorbrewer2.org says it is safe.
PALETTE = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"}
MAPS = {"cividis", "cividis_r", "RdBu", "RdBu_r"}


@pytest.mark.parametrize("case", CASES)
def test_every_colour_is_one_that_colour_blind_readers_can_tell_from_the_others(
    case: str, figures: list[Figure]
) -> None:
    made = pictures.of_results(CASES[case]) + pictures.of_gates(CASES[case])
    for figure, picture in zip(figures, made, strict=True):
        maps = [image.cmap for axes in figure.axes for image in axes.images]
        assert {found.name for found in maps} <= MAPS, picture.title
        of_maps = {to_hex(color) for found in maps for color in found(range(found.N))}
        drawn = set(re.findall(r"#[0-9a-f]{6}\b", base64.b64decode(picture.source.split(",", 1)[1]).decode()))
        grey = {color for color in drawn if color[1:3] == color[3:5] == color[5:7]}
        assert drawn - grey - of_maps <= PALETTE, picture.title


def test_the_same_comparison_gives_the_same_bytes() -> None:
    assert pictures.of_results(methods(*ROWS)) == pictures.of_results(methods(*ROWS))
    assert pictures.of_gates(comparison()) == pictures.of_gates(comparison())


def test_settings_of_matplotlib_are_neither_used_nor_changed() -> None:
    before = pictures.of_gates(comparison())
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "none", "axes.facecolor": "red"}):
        assert pictures.of_gates(comparison()) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_without_data_there_is_no_picture() -> None:
    nothing = Comparison("t", 0, 2)
    assert pictures.of_results(nothing) == [] and pictures.of_gates(nothing) == []
    plain = comparison([replace(r, reliability=None) for r in ROWS], Evidence())
    assert [p.title for p in pictures.of_results(plain)] == [
        "Accuracy against the cost of inference",
        "Accuracy against steps of training",
        "Accuracy against time",
    ]


@pytest.mark.parametrize(
    ("accuracies", "between"),
    [
        ((95.7, 95.6, 95.5, 95.4, 95.1, 94.6, 94.5, 91.4, 83.5, 34.0, 11.5), (91.4, 94.5)),
        ((96.2, 95.9, 95.4, 95.0, 94.8, 94.7, 94.6, 94.3, 93.5, 10.0), (10.0, 93.5)),
        ((90.0, 85.0, 80.0, 75.0, 70.0, 65.0), None),
        ((95.0, 95.0, 95.0, 94.6), None),  # less than a point
        ((95.0, 11.0), None),  # too few to say which of them is ordinary
    ],
)
def test_the_scale_is_broken_below_the_better_half(
    accuracies: tuple[float, ...], between: tuple[float, float] | None
) -> None:
    found = costs.cut(accuracies)
    assert found is None if between is None else found is not None and between[0] < found < between[1]


@pytest.mark.parametrize("seed", range(20))
def test_labels_keep_their_distance_and_their_order(seed: int) -> None:
    random = np.random.RandomState(seed)
    wanted = sorted((300 * random.rand(random.randint(1, 20))).tolist())
    found = labels.spread(wanted, 12.5, 10, 290)
    assert all(b - a >= 12.5 - 1e-9 for a, b in zip(found, found[1:], strict=False))
    assert found[0] >= 10 - 1e-9 and found[-1] <= 290 + 1e-9


def test_labels_that_have_room_stay_where_they_are() -> None:
    assert labels.spread([20, 50, 90], 12.5, 0, 100) == pytest.approx([20, 50, 90])
    assert labels.spread([50, 50], 10, 0, 100) == pytest.approx([45, 55])
    assert labels.spread([], 10, 0, 100) == []


def test_labels_without_room_come_closer() -> None:
    assert labels.spread([0.0] * 11, 12.5, 0, 100) == pytest.approx(list(range(0, 101, 10)))


@pytest.mark.parametrize("seed", range(20))
def test_marks_and_labels_never_cover_each_other(seed: int) -> None:
    random = np.random.RandomState(seed)
    marks = []
    for _ in range(25):
        x, y = float(random.choice([50, 90, 300, 303, 500])), float(400 * random.rand())
        marks.append(labels.Mark(x, y, y - 20, y + 20, width=float(40 + 100 * random.rand())))
    found = labels.place(marks, 12.5, 0, 400)
    for i, one in enumerate(found):
        assert one.y == marks[i].y and one.label_x >= one.x + labels.LEADER - 1e-9
        for j, other in enumerate(found[:i]):
            assert abs(one.x - other.x) >= labels.SAME or abs(one.y - other.y) >= labels.MARK or one.x != other.x
            beside = one.label_x + marks[i].width <= other.label_x or other.label_x + marks[j].width <= one.label_x
            assert beside or abs(one.label_y - other.label_y) >= 12.5 - 1e-9
        for other in found:
            behind = other.x > one.label_x + marks[i].width or other.x < one.label_x
            assert behind or other.label_x == one.label_x


def test_what_a_reader_asks_for_first_is_shown_first() -> None:
    found = [r.method for r in calibration.chosen(comparison())]
    assert found[:3] == ["single teacher", "ensemble", ONE_PASS]
    assert found[3:] == ["fine-tuned", "distillation", "constant student"]
    assert calibration.chosen(comparison([replace(r, reliability=None) for r in ROWS])) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("for every row", "attention has a learned gate")),
        (
            {"row_gates": None, "bucketed_gate": None},
            ("no learned gate; that of \u201cthe paper's form\u201d is shown",),
        ),
        ({"row_gates": None, "bucketed_gate": None, "dense_gate": None}, ("attention has no learned gate.",)),
        ({"blend": (("conv", 0.05), ("head", 1.0))}, ("conv 0.05, head 1.00",)),
    ],
)
def test_the_gates_are_told_in_words(changes: dict[str, object], expected: tuple[str, ...]) -> None:
    text = gates.sentence(comparison(found=replace(evidence(), **changes)))  # type: ignore[arg-type]
    assert all(part in text for part in expected), text


def test_a_part_of_a_layer_is_called_one() -> None:
    made = weights.weights(comparison())
    assert made is not None and "of 8 x 40, the first 8 x 20" in made.caption


def test_agreement_reads_its_means_aloud() -> None:
    found = replace(evidence(), agreement=Agreement(((0.1, 0.5), (0.7, 0.3)), ((1.0, 2.0), (3.0, 4.0))))
    made = agreement.agreement(comparison(found=found))
    assert made is not None and "0.2 nats on the diagonal and 0.6 nats beside it" in made.alt


@pytest.mark.parametrize(("text", "expected"), [("short", "short"), ("a" * 30 + "b" * 30, "a" * 28 + "…" + "b" * 15)])
def test_long_names_lose_their_middle(text: str, expected: str) -> None:
    assert style.short(text) == expected and len(style.short(text)) <= style.LONGEST
