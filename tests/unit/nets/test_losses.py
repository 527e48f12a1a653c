"""Losses of students against loops, closed forms and each other."""

from __future__ import annotations

import math

import pytest
import torch

from stillroom.errors import StillroomError
from stillroom.nets.losses import Loss, Objective, Target, dist, kl, mse_gt, soft_ce

GEN = torch.Generator().manual_seed(3)
STUDENT = torch.randn(4, 3, generator=GEN, dtype=torch.float64)
TEACHER = 2 * torch.randn(4, 3, generator=GEN, dtype=torch.float64)
CLASSES = torch.tensor([0, 2, 1, 1])


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def slope(loss, *more) -> torch.Tensor:
    z = STUDENT.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(z, *more), z)
    return found


def test_mse_gt_by_hand() -> None:
    """Two images, three classes: 10 / 6 of squares, and ln 3 of a student without an opinion."""
    student = torch.zeros(2, 3)
    teacher = torch.tensor([[1.0, 0.0, -2.0], [0.0, 2.0, 1.0]])
    value = mse_gt(student, teacher, torch.tensor([0, 1]), 0.1)
    assert float(value) == pytest.approx(10 / 6 + 0.1 * math.log(3), rel=1e-6)


def test_the_gradient_of_mse_gt() -> None:
    """2 (z - zT) / (B C) + w (softmax - y) / B."""
    b, c = STUDENT.shape
    one_hot = torch.nn.functional.one_hot(CLASSES, c)
    by_hand = 2 * (STUDENT - TEACHER) / (b * c) + 0.025 * (STUDENT.softmax(1) - one_hot) / b
    torch.testing.assert_close(slope(mse_gt, TEACHER, CLASSES, 0.025), by_hand)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_divergence_and_soft_cross_entropy_are_loops(temperature: float) -> None:
    p = [softmax(row, temperature) for row in STUDENT.tolist()]
    q = [softmax(row, temperature) for row in TEACHER.tolist()]
    pairs = [pair for rows in zip(p, q, strict=True) for pair in zip(rows[0], rows[1], strict=True)]
    divergence = sum(b * math.log(b / a) for a, b in pairs) / len(p)
    entropy = -sum(b * math.log(b) for _, b in pairs) / len(p)
    assert float(kl(STUDENT, TEACHER, temperature)) == pytest.approx(divergence, rel=1e-9)
    crossed = float(soft_ce(STUDENT, TEACHER, temperature))
    assert crossed == pytest.approx(divergence + entropy, rel=1e-9)
    torch.testing.assert_close(
        slope(kl, TEACHER, temperature), slope(soft_ce, TEACHER, temperature)
    )


def test_the_squared_temperature_is_a_choice() -> None:
    target = Target(TEACHER, "logits")
    plain = Objective("kl", temperature=20.0)(STUDENT, target)
    squared = Objective("kl", temperature=20.0, t_squared=True)(STUDENT, target)
    assert float(squared) == pytest.approx(400 * float(plain), rel=1e-12)


def test_dist_is_a_loop_over_rows_and_columns() -> None:
    def correlation(a: list[float], b: list[float]) -> float:
        a, b = ([v - sum(x) / len(x) for v in x] for x in (a, b))
        norms = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
        return sum(v * w for v, w in zip(a, b, strict=True)) / (norms + 1e-5)

    p = [softmax(row, 4.0) for row in STUDENT.tolist()]
    q = [softmax(row, 4.0) for row in TEACHER.tolist()]
    inter = 1 - sum(map(correlation, p, q)) / len(p)
    columns = [list(map(list, zip(*m, strict=True))) for m in (p, q)]
    intra = 1 - sum(map(correlation, *columns)) / len(columns[0])
    assert float(dist(STUDENT, TEACHER, 4.0)) == pytest.approx(16 * 2 * (inter + intra), rel=1e-9)


def test_the_objective_calls_the_loss_of_its_name() -> None:
    target = Target(TEACHER, "logits", CLASSES)
    expected = {
        "ce": soft_ce(STUDENT, TEACHER, 1.0),
        "soft_ce": soft_ce(STUDENT, TEACHER, 3.0),
        "kl": kl(STUDENT, TEACHER, 3.0),
        "mse_gt": mse_gt(STUDENT, TEACHER, CLASSES, 0.5),
        "dist": dist(STUDENT, TEACHER, 3.0),
    }
    for name, value in expected.items():
        found = Objective(name, temperature=3.0, ce_weight=0.5)(STUDENT, target)
        torch.testing.assert_close(found, value)


@pytest.mark.parametrize("loss", ["soft_ce", "kl", "mse_gt", "dist"])
@pytest.mark.parametrize("kind", ["hard", "probs"])
def test_losses_that_need_a_teacher_say_so(loss: Loss, kind) -> None:
    labels = CLASSES if kind == "hard" else TEACHER.softmax(1)
    with pytest.raises(StillroomError, match=rf"^loss={loss} compares .* labels are {kind}; "):
        Objective(loss)(STUDENT, Target(labels, kind, CLASSES))


def test_mse_gt_needs_the_class() -> None:
    with pytest.raises(StillroomError, match="needs the class of every image"):
        Objective("mse_gt")(STUDENT, Target(TEACHER, "logits"))
