"""Every command that the pages "from the papers" map to runs, on the digits and small networks."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from stillroom.artefacts.schooling import find_schooling
from stillroom.cli import run
from stillroom.distilled import load
from stillroom.evaluation.published import find_protocol
from stillroom.files import read_json, sha256
from stillroom.records import LEDGER, read_records

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs" / "from-the-papers").glob("*.md"))
SMALL = {
    "cifar10": "digits",
    "convnet3": "convnet1-w4",
    "alexnet": "mlp",
    "vgg11": "convnet1-w8",
    "resnet18": "convnet1-w2",
    "lenet": "convnet2-w4",
}
SCHOOLED = "clom+epochs=3"  # of 150
COMMANDS = [
    (page.stem, found)
    for page in PAGES
    for found in re.findall(r"`(stillroom [^`]+)`", page.read_text(encoding="utf-8"))
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all, and a set for the commands that judge one."""
    folder = tmp_path_factory.mktemp("papers")
    line = ["distill", "dc", "--data", "digits", "--ipc", "1", "--steps", "1"]
    assert run([*line, "--arch", "convnet1-w4", "--out", f"{folder}/dc", *common(folder)]) == 0
    return folder


def common(root: Path) -> list[str]:
    return ["--store", f"{root}/store", "--threads", "1", "--quiet"]


def shortened(command: str, root: Path) -> list[str]:
    """The same command for small networks, one model of each, one step."""
    words = [SMALL.get(word, word) for word in shlex.split(command)[1:]]
    words = [word.replace("out/", f"{root}/").replace("full:cifar10", "full:digits")
             for word in words]  # fmt: skip
    for flag in ("--num", "--model-num", "--ipc", "--steps", "--seeds"):
        if flag in words:
            words[words.index(flag) + 1] = "1"
    for flag, short in (("--originals", SCHOOLED), ("--recipe", SCHOOLED), ("--epochs", "3")):
        if flag in words:
            assert words[words.index(flag) + 1] in ("clom", "150")
            words[words.index(flag) + 1] = short
    if words[0] == "distill":
        words += [] if "--steps" in words else ["--steps", "1"]
        words += ["--arch", "convnet1-w4", "--out", f"{root}/{sha256(command)[:8]}"]
    if words[0] == "evaluate":
        words[words.index("--protocol") + 1] += "+epochs=2"
        words += ["--records", f"{root}/{sha256(command)[:8]}.jsonl"]
    return [*words, *common(root)]


def values_of(words: list[str], flag: str) -> list[str]:
    """The values of a flag, up to the next one."""
    if flag not in words:
        return []
    rest = words[words.index(flag) + 1 :]
    return list(itertools.takewhile(lambda word: not word.startswith("--"), rest))


def originals(root: Path) -> list[dict[str, Any]]:
    """What the original models in the store are, as their keys have it."""
    return [read_json(path)["identity"] for path in (root / "store").glob("original-*/stage.json")]


def check_prepared(words: list[str], root: Path) -> None:
    (arch,) = values_of(words, "--arch")
    made = [m for m in originals(root) if m["arch"] == arch]
    assert find_schooling(SCHOOLED).model_dump(mode="json") in [m["schooling"] for m in made]


def check_distilled(words: list[str], root: Path) -> None:
    (folder,) = values_of(words, "--out")
    made = load(Path(folder))
    recipe = made.provenance["recipe"]
    assert len(made) == 10
    assert recipe["outer"]["steps"] == 1
    for flag, field in (("--distance", "distance"), ("--net-lr", "net_lr"), ("--init", "init"),
                        ("--batch-real", "batch_real"), ("--net-batch", "net_batch")):  # fmt: skip
        for value in values_of(words, flag):
            assert str(recipe["method"][field]) == value
    for value in values_of(words, "--images.lr"):
        assert str(recipe["outer"]["images"]["lr"]) == value
    if "--alphas" not in words:
        assert made.provenance["label"] == words[1]
        return
    assert made.provenance["label"] == f"{words[1]}+clom"
    (term,) = recipe["regularisers"]
    pool = values_of(words, "--models-pool")
    assert term["weights"] == [float(alpha) for alpha in values_of(words, "--alphas")]
    assert term["pool"] == pool
    assert term["schooling"] == find_schooling(SCHOOLED).model_dump(mode="json")
    assert len(recipe["wants"]) == len(pool)
    assert {*pool} <= {m["arch"] for m in originals(root)}


def check_judged(words: list[str], root: Path) -> None:
    (protocol,), (ledger,) = values_of(words, "--protocol"), values_of(words, "--records")
    found = [r for r in read_records(Path(ledger)) if r.metric == "accuracy"]
    assert {r.protocol for r in found} == {protocol}
    assert {r.row for r in found} == {"full" if words[1].startswith("full:") else "dc@1"}
    assert {r.arch for r in found} == {*(values_of(words, "--arch") or ["convnet1-w4"])}
    usual = int(*(values_of(words, "--seeds") or [find_protocol(protocol).seeds]))
    assert {r.seed for r in found} == set(range(usual))
    if "released" in protocol:
        assert {r.selection for r in found} == {"best"}
    for folder in values_of(words, "--save-models"):
        kept = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
        assert [told["accuracy"] for told in kept] == [r.value for r in found]
        assert len(list(Path(folder).glob("*.safetensors"))) == len(found)


def check_assessed(words: list[str], root: Path) -> None:
    (arch,) = values_of(words, "--models-pool")
    found = [r for r in read_records(Path(words[1]) / LEDGER) if r.protocol.startswith("assess")]
    (told,) = [r for r in found if r.metric == "original-model-accuracy" and r.arch == arch]
    assert 0 <= told.value <= 1


CHECKS = {
    "prepare": check_prepared,
    "distill": check_distilled,
    "evaluate": check_judged,
    "assess": check_assessed,
}


def test_there_are_some() -> None:
    assert len(COMMANDS) >= 16
    assert {command.split()[1] for _, command in COMMANDS} == {*CHECKS}


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=str)
def test_command_does_what_it_says(page: str, command: str, root: Path) -> None:
    words = shortened(command, root)
    assert run(words) == 0
    CHECKS[words[0]](words, root)


# What `main.py`, `main_DM.py`, `train.py` and `validate.py` of the released code are told.
THEIRS = (
    "method dataset model ipc eval_mode num_exp num_eval epoch_eval_train Iteration lr_img lr_net "
    "batch_real batch_train init dsa_strategy data_path save_path dis_metric alphas models_pool "
    "model_num gpu num epochs batch_size lr momentum weight_decay lr_decay_step save_every "
    "random_seed normalize_data multigpu save_model dsa synthesis_data_path"
)


def test_every_option_of_clom_is_mapped() -> None:
    (page,) = [path for path in PAGES if path.stem == "clom"]
    rows = [line.split("|") for line in page.read_text("utf-8").splitlines() if line[:1] == "|"]
    theirs = " ".join(row[1] for row in rows)
    missing = [name for name in THEIRS.split() if not re.search(rf"--{name}(?![\w])", theirs)]
    assert not missing
    assert all(row[2].strip() for row in rows)
