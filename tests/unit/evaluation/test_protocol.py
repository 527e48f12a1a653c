"""Protocols: what is frozen, what a hash covers, and how one is named."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stillroom.cite import PAPERS
from stillroom.config import DSA, DSA_WIDE
from stillroom.errors import StillroomError
from stillroom.evaluation.protocol import QUIRKS, Protocol, View
from stillroom.evaluation.published import PROTOCOLS, find_protocol

# A number in the ledger quotes these: a protocol that changes gets another version.
FROZEN = {
    "quick@1": "75e39eaf2c5c",
    "vico@1": "67f57f6ea6d0",
    "vico-plain@1": "8eccdde0446e",
    "mtt@1": "7a46801437b0",
    "datm@1": "b1e6ae80ff07",
    "edf@1": "e7b0f5b4d256",
    "edf-plain@1": "f886e122ca49",
    "eccv24@1": "ba6859cffe92",
    "clom@1": "bd4e15adf031",
    "clom-released@1": "57fb837575c4",
    "clom-plain@1": "370f81bd8546",
    "clom-plain-released@1": "fa32ddcbea3a",
    "edc@1": "07bb0ae942da",
    "edc-released@1": "4c89ac58a386",
    "edc-cifar10@1": "352c0caea3af",
    "edc-cifar10@2": "aae2777c14fe",
    "edc-cifar10-released@1": "064855f6d7b2",
    "edc-cifar10-released@2": "29ef47a78063",
    "edc-cifar100@1": "1d11228dd4b4",
    "edc-cifar100@2": "d870c008b0fc",
    "edc-cifar100-released@1": "efe04a2fa82a",
    "edc-cifar100-released@2": "633ea4f792e4",
    "edc-tiny@1": "0cce2dd91a13",
    "edc-tiny@2": "47f44336bfaa",
    "edc-tiny-released@1": "3710a327f0b2",
    "edc-tiny-released@2": "f4963b062349",
    "edc-imagenet10@1": "4b7071607211",
    "edc-imagenet10@2": "c2e00dc0c79f",
    "edc-imagenet10-released@1": "84a521cabc2a",
    "edc-imagenet10-released@2": "77222ca58457",
    "gvbsm@1": "197ad4d3e8fc",
    "gvbsm-cifar10@1": "32260a801fb9",
    "gvbsm-cifar100@1": "1177bc51207e",
    "gvbsm-tiny@1": "ca77092412f7",
    "sre2l@1": "4964d4596450",
    "sre2l@2": "8255fcc78695",
    "sre2l-cifar100@1": "ee7dcc402cd6",
    "sre2l-tiny@1": "7505e97f44f5",
    "cda@1": "648039639d4f",
    "rded@1": "fe8ebe3e4758",
    "rded-cifar100-convnet@1": "852a530f778c",
    "search@1": "c689c56b24a4",
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_published_protocol_does_not_change(name: str) -> None:
    assert PROTOCOLS[name].digest() == FROZEN[name]


def test_the_rates_of_clom() -> None:
    """As intended a tenth after 500 epochs; as released, where "500" is text, never."""
    from stillroom.evaluation.score import training_of
    from stillroom.nets.train import rate

    for name, last in (
        ("clom@1", 0.001),
        ("clom-plain@1", 0.001),
        ("clom-released@1", 0.01),
        ("clom-plain-released@1", 0.01),
    ):
        training = training_of(PROTOCOLS[name], 0.01)
        assert [rate(training, e) for e in (0, 499, 500, 999)] == pytest.approx(
            [0.01, 0.01, last, last]
        )
    for name in ("clom-released@1", "clom-plain-released@1"):
        assert PROTOCOLS[name].select == "best"
        assert PROTOCOLS[name].check_epochs() == list(range(50, 1001, 50))


@pytest.mark.parametrize("end", ["", "-released"])
def test_plain_clom_differs_by_augmentation_alone(end: str) -> None:
    """The released code augments only where it is told --dsa."""
    told, plain = (PROTOCOLS[f"{name}{end}@1"] for name in ("clom", "clom-plain"))
    named = {"name": plain.name, "augment": "none", "why": plain.why}
    assert told.model_copy(update=named) == plain


@pytest.mark.filterwarnings("ignore:Pydantic serializer")
def test_the_hash_covers_what_changes_a_number_and_nothing_else() -> None:
    vico = PROTOCOLS["vico@1"]
    words = {"why": "otherwise said", "papers": ()}
    assert vico.model_copy(update=words).digest() == vico.digest()
    for field in type(vico).model_fields:
        if field not in words:
            other = View(scale=(0.5, 1.0)) if field == "view" else "?"
            assert vico.model_copy(update={field: other}).digest() != vico.digest(), field


def test_fields_that_came_later_change_no_key_at_their_defaults() -> None:
    """What was dumped before they came is what is dumped now, and is read as it was meant."""
    before = {
        "name", "version", "epochs", "batch", "lr", "rates", "momentum", "weight_decay", "schedule",
        "milestones", "augment", "labels", "select", "checks", "seeds", "quirks",
    }  # fmt: skip
    fields = Protocol.model_fields
    for protocol in PROTOCOLS.values():
        grown = {n for n in Protocol.later if getattr(protocol, n) != fields[n].default}
        for mode in ("json", "python"):
            assert protocol.model_dump(mode=mode).keys() == before | grown
        assert Protocol.model_validate({**protocol.model_dump(), "why": ""}) == protocol.model_copy(
            update={"why": "", "papers": ()}
        )
    assert PROTOCOLS["vico@1"].model_dump().keys() == before
    assert set(Protocol.later) == set(fields) - before - {"papers", "why"}


def test_what_the_trainer_is_told() -> None:
    """Every field of a student of logits arrives."""
    from stillroom.evaluation.score import training_of
    from stillroom.nets.losses import Objective

    edc = Protocol(
        name="edc-like", version=1, epochs=300, batch=100, lr=1e-3, weight_decay=0.01,
        schedule="smoothing", zeta=2.0, warmup=5, augment="none", labels="logits", checks=10,
        seeds=1, optimiser="adamw", decay="matrices", loss="mse_gt", ce_weight=0.025, ema=0.99,
        pieces=4, why="",
    )  # fmt: skip
    t = training_of(edc, 1e-3, "none", "logits")
    assert (t.optimiser, t.decay, t.ema, t.pieces) == ("adamw", "matrices", 0.99, 4)
    assert (t.schedule, t.zeta, t.warmup, t.labels) == ("smoothing", 2.0, 5, "logits")
    assert t.objective == Objective("mse_gt", ce_weight=0.025)
    halved = edc.model_copy(
        update={"schedule": "steps", "milestones": (200,), "factor": 0.5, "zeta": 1.0}
    )
    assert training_of(halved, 1e-3).factor == 0.5
    kl = edc.model_copy(update={"loss": "kl", "temperature": 20.0, "t_squared": True})
    assert training_of(kl, 1e-3).objective == Objective("kl", 20.0, 0.025, True)


def test_epochs_of_vico() -> None:
    """The parity README: E = 1000 makes 1001 passes, E = 300 makes 301."""
    assert PROTOCOLS["vico@1"].passes == 1001
    assert PROTOCOLS["vico-plain@1"].passes == 301
    assert PROTOCOLS["quick@1"].passes == PROTOCOLS["quick@1"].epochs
    assert PROTOCOLS["vico@1"].check_epochs() == [201, 401, 601, 801, 1001]


@pytest.mark.parametrize(
    ("classes", "batches"),  # with 1, 10 and 50 images a class
    [(10, (10, 50, 100)), (100, (20, 100, 200)), (200, (100, 100, 100)), (1000, (20, 100, 200))],
)
def test_the_batches_of_rded(classes: int, batches: tuple[int, int, int]) -> None:
    """The evaluation specification, 4.3; other images a class than these have no rule there."""
    rded = PROTOCOLS["rded@1"]
    found = [rded.settled(ipc * classes, classes, "convnet3-bn").batch for ipc in (1, 10, 50)]
    assert tuple(found) == batches
    assert rded.settled(20 * classes, classes, "convnet3-bn").batch == batches[1]
    edc = PROTOCOLS["edc@1"]
    assert edc.settled(classes, classes, "imagenet/alexnet") == edc


def test_the_rates_of_rded() -> None:
    """By network, whichever library it is of; 4.4."""
    told = {
        "resnet18-bn": 1e-3, "imagenet/resnet18": 1e-3, "torchvision/resnet101": 1e-3,
        "convnet3-bn": 1e-3, "imagenet/efficientnet_b0": 2e-3, "imagenet/mobilenet_v2": 2.5e-3,
        "vgg11-bn": 5e-4, "alexnet": 1e-4, "imagenet/alexnet": 1e-4, "torchvision/vit_b_16": 1e-4,
        "torchvision/swin_v2_t": 1e-4, "torchvision/swin_t": 1e-3,
    }  # fmt: skip
    rded = PROTOCOLS["rded@1"]
    assert {name: rded.settled(10, 10, name).lr for name in told} == told
    assert rded.settled(10, 10, "alexnet").rates_of(None) == (1e-4,)


def test_what_rded_and_edc_test_is_late() -> None:
    """RDED after epochs 249, 259 ... 299, counted from 0; EDC's CIFAR-10 every ten after 800."""
    assert PROTOCOLS["rded@1"].check_epochs() == list(range(250, 301, 10))
    assert PROTOCOLS["edc-cifar10-released@1"].check_epochs() == list(range(810, 1001, 10))
    assert find_protocol("rded@1+epochs=2").check_epochs() == [2]


def test_second_versions_of_edc_differ_by_randaugment_alone() -> None:
    """On small data, in the paper and in the code; ImageNet-1K and G-VBSM have none."""
    small = ("edc-cifar10", "edc-cifar100", "edc-tiny", "edc-imagenet10")
    names = [name for base in small for name in (base, f"{base}-released")]
    assert [p.name for p in PROTOCOLS.values() if p.view is not None and p.view.ops] == names
    for name in names:
        first, second = PROTOCOLS[f"{name}@1"], PROTOCOLS[f"{name}@2"]
        assert first.view is not None
        same = {"version": 2, "view": first.view.model_copy(update={"ops": 2}), "why": second.why}
        assert second == first.model_copy(update=same)
        assert second.view is not None
        policy = second.view.policy(32)
        assert (policy.ops, policy.magnitude) == (2, 9)


def test_views_of_rded_and_of_sre2l() -> None:
    shown, small = PROTOCOLS["rded@1"].view, PROTOCOLS["sre2l-cifar100@1"].view
    assert shown is not None
    assert small is not None
    made = {size: shown.policy(size) for size in (32, 64, 128, 224)}
    assert {size: (p.shuffle, p.scale) for size, p in made.items()} == {
        32: (1, (1.0, 1.0)), 64: (1, (1.0, 1.0)), 128: (2, (0.5, 1.0)), 224: (2, (0.5, 1.0)),
    }  # fmt: skip
    policy = small.policy(32)
    assert (policy.padding, policy.mix, policy.beta) == (4, "mixup", 0.8)


def test_names() -> None:
    assert find_protocol("vico") == PROTOCOLS["vico@1"]
    assert find_protocol("sre2l") == PROTOCOLS["sre2l@2"]
    short = find_protocol("vico@1+epochs=3")
    assert (short.id, short.passes, short.check_epochs()) == ("vico@1+epochs=3", 4, [2, 3, 4])
    assert short.digest() != PROTOCOLS["vico@1"].digest()
    same = find_protocol("vico@1+epochs=1000")
    assert (same.id, same.digest()) == ("vico@1", PROTOCOLS["vico@1"].digest())
    other = find_protocol("clom@1+batch=32+epochs=50+weight_decay=1e-3+lr=0.02+momentum=0")
    assert (other.batch, other.lr, other.weight_decay, other.momentum) == (32, 0.02, 1e-3, 0.0)
    assert other.milestones == (25,)
    assert other.id == "clom@1+epochs=50+batch=32+lr=0.02+momentum=0+weight_decay=0.001"
    assert find_protocol(other.id).digest() == other.digest()
    rded = PROTOCOLS["rded@1"]
    assert rded.settled(100, 10, "resnet18").id == "rded@1", "what a rule settles is no change"


@pytest.mark.parametrize(
    "name",
    ["vic", "vico@2", "", "vico@1+", "vico@1+lr=0", "vico@1+epochs=0", "vico@1+epochs=1e3",
     "vico@1+epochs=-1", "vico@1+epochs=9999999", "vico@1+epochs=٣", "vico@1+lr=nan",
     "vico@1+momentum=1", "vico@1+batch=2.5", "vico@1+quirks=1", "mtt@1+lr=0.1",
     "rded@1+batch=5"],
)  # fmt: skip
def test_unknown_names_are_one_line(name: str) -> None:
    with pytest.raises(StillroomError) as caught:
        find_protocol(name)
    assert "\n" not in str(caught.value)
    assert "protocol=" in str(caught.value)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_explains_itself(name: str) -> None:
    protocol = PROTOCOLS[name]
    assert protocol.id == name
    assert len(protocol.why) > 60
    assert set(protocol.quirks) <= set(QUIRKS)
    assert set(protocol.papers) <= set(PAPERS)
    assert protocol.rates or isinstance(protocol.lr, float)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"quirks": ("best_on_test",)}, "best_on_test is select: best"),
        ({"select": "best"}, "best_on_test is select: best"),
        ({"quirks": ("never_decays",)}, "never_decays is schedule: constant"),
        ({"schedule": "steps"}, "milestones belong to schedule steps"),
        ({"milestones": (3,)}, "milestones belong to schedule steps"),
        ({"lr": "search", "rates": ()}, "needs rates"),
        ({"quirks": ("live_norms",)}, "live_norms is of averaged weights"),
        ({"warmup": 100}, "warmup must be fewer than the 100 epochs"),
        ({"zeta": 2.0}, "zeta belongs to schedule smoothing, linear, cos2"),
        ({"factor": 0.5}, "factor belongs to schedule steps"),
        ({"temperature": 4.0}, "temperature belongs to loss soft_ce, kl, dist"),
        ({"loss": "kl", "labels": "logits", "ce_weight": 0.1}, "ce_weight belongs to loss mse_gt"),
        ({"t_squared": True}, "t_squared belongs to loss kl"),
        ({"loss": "kl"}, "labels of teachers are for losses other than ce"),
        ({"labels": "logits"}, "labels of teachers are for losses other than ce"),
        ({"batches": {"by_ipc": [(1, 2)], "twice": (), "fixed": ()}}, "batches belong to labels"),
        ({"lr": "set", "rates": (0.1,), "by_arch": [("mlp", 0.1)]}, "by_arch belongs to a rate"),
    ],
    ids=str,
)
def test_a_quirk_is_what_the_fields_do(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Protocol(**{**PROTOCOLS["quick@1"].model_dump(), "why": "", **fields})


def test_other_epochs_keep_the_drop_where_it_was_in_the_run() -> None:
    assert find_protocol("clom@1+epochs=100").milestones == (50,)
    assert find_protocol("clom@1+epochs=2000").milestones == (1000,)


def test_the_table_of_the_page_is_that_of_the_protocols() -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "protocols.md"
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    told = {row[0].strip("`"): row[1:] for row in rows if len(row) == 8}
    assert told.keys() == PROTOCOLS.keys()
    for name, (epochs, rate, _, augment, labels, selection, seeds) in told.items():
        p = PROTOCOLS[name]
        assert epochs.replace(",", "") == str(p.passes), name
        assert rate == f"{p.lr}" or not isinstance(p.lr, float), name
        shown = {"set": "the set's", DSA: "DSA", DSA_WIDE: "DSA, wide crops"}.get(
            p.augment, p.augment
        )
        assert augment == (shown if p.view is None else "views"), name
        assert (labels, selection, seeds) == (p.labels, p.select, str(p.seeds)), name


def test_the_loss_of_a_protocol_of_teachers_can_be_another() -> None:
    """What belonged to its own loss goes with that; the name tells all, and leads back."""
    made = find_protocol("edc@1+loss=dist+temperature=20")
    assert (made.loss, made.temperature, made.ce_weight) == ("dist", 20.0, 0.0)
    assert made.id == "edc@1+loss=dist+temperature=20"
    for name in (
        "edc@1+loss=kl", "edc@1+loss=soft_ce+temperature=4", "sre2l@2+temperature=3",
        "edc-cifar10@2+ce_weight=0.1", "sre2l@2+loss=mse_gt+ce_weight=0.1", "vico@1+pieces=4",
    ):  # fmt: skip
        changed = find_protocol(name)
        assert changed.id == name
        assert find_protocol(changed.id) == changed
        assert changed.digest() != find_protocol(name.partition("+")[0]).digest()
    tiny = find_protocol("sre2l-tiny@1+loss=mse_gt")
    assert not tiny.t_squared
    for wrong, told in (
        ("vico@1+loss=kl", "loss is of protocols where teachers label"),
        ("edc@1+loss=huber", "one of soft_ce, kl, mse_gt, dist"),
        ("edc@1+temperature=3", "temperature belongs to loss"),
        ("edc@1+loss=kl+ce_weight=0.1", "ce_weight belongs to loss mse_gt"),
        ("edc@1+loss=kl+temperature=0", r"temperature=0 must be a number in 0.01..1000"),
        ("edc@1+pieces=0", r"pieces=0 must be a whole number in 1..100000"),
        ("edc@1+loss=dist+pieces=2", "losses other than dist, which compares"),
        ("edc@1+momentum=0.5", "momentum is of sgd, and edc has adamw"),
        ("edc@1+epochs=3+epochs=5", "changes one thing twice"),
        ("edc@1+epoch=3", "did you mean 'epochs'"),
    ):
        with pytest.raises(StillroomError, match=told):
            find_protocol(wrong)


CHANGES: dict[str, tuple[str, ...]] = {
    "epochs": ("", "3", "100", "300"),
    "lr": ("", "5e-05", "0.012345678", "0.001"),
    "loss": ("", "kl", "dist", "mse_gt", "soft_ce"),
    "temperature": ("", "1", "20", "10.1234567", "10.1234568"),
    "ce_weight": ("", "0.025", "0"),
}


@pytest.mark.parametrize(
    "base", ["sre2l@1", "sre2l@2", "sre2l-tiny@1", "rded@1", "edc@1", "edc-cifar10@2", "cda@1"]
)
def test_two_protocols_never_share_a_name(base: str) -> None:
    """Of every combination of changes, also to what the protocol or the field has anyway."""
    names: dict[str, str] = {}
    for values in itertools.product(*CHANGES.values()):
        pairs = [f"{f}={v}" for f, v in zip(CHANGES, values, strict=True) if v]
        try:
            made = find_protocol("+".join([base, *pairs]))
        except StillroomError:
            continue
        assert find_protocol(made.id) == made
        assert names.setdefault(made.id, made.digest()) == made.digest(), made.id
    assert len(set(names.values())) == len(names) > 30
    own = PROTOCOLS[base]
    assert find_protocol(f"{base}+loss={own.loss}") == own
    assert find_protocol(f"{base}+epochs={own.epochs}").id == base
