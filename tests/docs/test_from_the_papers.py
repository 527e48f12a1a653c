"""Every command that the pages "from the papers" map to runs, on the digits and small networks."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.artefacts.schooling import find_schooling
from stillroom.cli import run
from stillroom.config import DSA_UNMIRRORED
from stillroom.distilled import load
from stillroom.evaluation.published import find_protocol
from stillroom.files import read_json, sha256
from stillroom.interchange import edf_config
from stillroom.methods import METHODS, PRESETS
from stillroom.recipe import load_recipe, validate
from stillroom.records import LEDGER, read_records

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs" / "from-the-papers").glob("*.md"))
SMALL = {
    "cifar10": "digits",
    "cifar100": "digits",
    "imagenet-1k": "digits",
    "imagenette": "digits",
    "comp-dd/bird-easy": "digits",
    "convnet5": "convnet1-w4",
    "convnet3": "convnet1-w4",
    "alexnet": "mlp",
    "vgg11": "convnet1-w8",
    "resnet18": "convnet1-w2",
    "lenet": "convnet2-w4",
    "resnet18-bn": "convnet1-w2-bn",
    "mobilenetv2-x0.5": "convnet1-w3-bn",
    "shufflenetv2-x0.5": "convnet1-w5-bn",
    "wrn16-2": "convnet1-w6-bn",
    "imagenet/resnet18": "convnet1-w2-bn",
    "imagenet/mobilenet_v2": "convnet1-w3-bn",
    "imagenet/efficientnet_b0": "convnet1-w4-bn",
    "imagenet/shufflenet_v2_x0_5": "convnet1-w5-bn",
    "imagenet/alexnet": "mlp",
}
OF_PAGE = {"clom": "dc", "edc": "edc", "edf": "edf"}  # the method whose sets are judged
FEW = [  # of trajectory matching
    *("--experts", "1", "--inner", "2", "--init", "real"),
    *("--window.begin", "1", "--window.last", "2", "--window.grow", "0"),
]
SHORT = "+epochs=3"  # behind the name of a schooling
COMMANDS = [
    (page.stem, found)
    for page in PAGES
    if page.stem not in ("challenge", "comp-dd")  # see test_challenge_page.py, test_comp_dd_page.py
    for found in re.findall(r"`(stillroom [^`]+)`", page.read_text(encoding="utf-8"))
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all, and a set for the commands that judge one."""
    folder = tmp_path_factory.mktemp("papers")
    for method in OF_PAGE.values():
        line = ["distill", method, "--data", "digits", "--ipc", "1", "--steps", "1"]
        line += ["--schooling.epochs", "3"] if method in ("edc", "edf") else []
        line += FEW if method == "edf" else []
        out = ["--out", f"{folder}/{method}"]
        assert run([*line, "--arch", "convnet1-w4", *out, *common(folder)]) == 0
    line = ["distill", "rded", "--data", "digits", "--ipc", "1", "--schooling.epochs", "3"]
    assert run([*line, "--arch", "convnet1-w4", "--out", f"{folder}/rded", *common(folder)]) == 0
    (folder / "IPC1.yaml").write_text("{ipc: 1, beta: 1.0, loss_threshold: 0.25, Iteration: 9}")
    data = {"images": torch.zeros(10, 1, 8, 8), "labels": torch.eye(10), "lr": torch.tensor(0.1)}
    for name, value in data.items():
        torch.save(value, folder / f"{name}_best.pt")
    return folder


def common(root: Path) -> list[str]:
    return ["--store", f"{root}/store", "--threads", "1", "--quiet"]


def shortened(command: str, root: Path) -> list[str]:
    """The same command for small networks, one model of each, one step."""
    words = [SMALL.get(word, word) for word in shlex.split(command)[1:]]
    words = [word.replace("out/", f"{root}/").replace("full:cifar10", "full:digits")
             for word in words]  # fmt: skip
    words = [f"{root}/{word}" if re.fullmatch(r"\w+\.(yaml|pt)", word) else word for word in words]
    if "every:500" in words:
        words[words.index("every:500")] = "every:1"
    for flag in ("--num", "--model-num", "--ipc", "--steps", "--seeds"):
        if flag in words:
            words[words.index(flag) + 1] = "1"
    for flag in ("--originals", "--recipe", "--schooling"):
        if flag in words:
            words[words.index(flag) + 1] += SHORT
    if "--epochs" in words:
        words[words.index("--epochs") + 1] = "3"
    if "--crops.pool" in words:
        words[words.index("--crops.pool") + 1] = "9"
    if words[0] == "distill":
        trained = METHODS[PRESETS[words[1]].kind].model_fields.get("schooling")
        words += ["--schooling.epochs", "3"] if trained else []
        words += [] if "--steps" in words or words[1] == "rded" else ["--steps", "1"]
        words += FEW if PRESETS[words[1]].kind == "trajectory_matching" else []
        words += ["--arch", "convnet1-w4-bn" if words[1] in ("rded", "sre2l") else "convnet1-w4"]
        words += ["--out", f"{root}/{sha256(command)[:8]}"]
    if words[0] == "evaluate":
        words[words.index("--protocol") + 1] += "+epochs=2"
        words += ["--records", f"{root}/{sha256(command)[:8]}.jsonl"]
    return [*words, *(common(root) if words[0] != "recipes" else [])]


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
    schooling = schooling_of(words, "--recipe")
    if words[1] == "experts":
        paths = (root / "store").glob("expert-*/stage.json")
        made = [read_json(path)["identity"] for path in paths]
        wanted = {**schooling, "augment": DSA_UNMIRRORED}  # as students of the digits see them
        (arch,) = values_of(words, "--arch")
        assert (arch, wanted) in [(m["arch"], m["schooling"]) for m in made]
        return
    for arch in values_of(words, "--arch"):
        made = [m for m in originals(root) if m["arch"] == arch]
        assert schooling in [m["schooling"] for m in made]
    if words[1] == "statistics":
        told = [
            read_json(path)["identity"] for path in (root / "store").glob("statistics-*/stage.json")
        ]
        assert told


def check_distilled(words: list[str], root: Path) -> None:
    (folder,) = values_of(words, "--out")
    made = load(Path(folder))
    recipe = made.provenance["recipe"]
    assert len(made) == 10
    assert recipe["outer"]["steps"] == (words[1] != "rded")
    for flag in (f for f in words if f.startswith("--") and f not in NOT_OF_METHODS):
        held: Any = recipe["outer"] if flag.startswith("--images.") else recipe["method"]
        for name in flag[2:].replace("-", "_").split("."):
            held = held[name]
        told = [held] if not isinstance(held, list) else held
        assert [yaml_like(v) for v in told] == [yaml_like(v) for v in values_of(words, flag)]
    if "--alphas" not in words:
        assert made.provenance["label"] == words[1].partition("-")[0]
        return
    assert made.provenance["label"] == f"{words[1]}+clom"
    (term,) = recipe["regularisers"]
    pool = values_of(words, "--models-pool")
    assert term["weights"] == [float(alpha) for alpha in values_of(words, "--alphas")]
    assert term["pool"] == pool
    assert term["schooling"] == schooling_of(words, "--originals")
    assert len(recipe["wants"]) == len(pool)
    assert {*pool} <= {m["arch"] for m in originals(root)}


def check_judged(words: list[str], root: Path) -> None:
    (protocol,), (ledger,) = values_of(words, "--protocol"), values_of(words, "--records")
    found = [r for r in read_records(Path(ledger)) if r.metric == "accuracy"]
    assert {r.protocol for r in found} == {protocol}
    name = Path(words[1]).name
    rows = {"full"} if name.startswith("full:") else {name, f"{name}@1"}
    assert {r.row for r in found} <= rows
    assert {r.arch for r in found} == {*(values_of(words, "--arch") or ["convnet1-w4"])}
    if find_protocol(protocol).view is not None:
        (labels,) = {r.labels for r in found}
        assert labels.startswith(f"{find_protocol(protocol).labels}:")
        schooling = schooling_of(words, "--schooling") if "--teachers" in words else None
        for arch in values_of(words, "--teachers"):
            assert schooling in [m["schooling"] for m in originals(root) if m["arch"] == arch]
    usual = int(*(values_of(words, "--seeds") or [find_protocol(protocol).seeds]))
    assert {r.seed for r in found} == set(range(usual))
    if "released" in protocol:
        assert {r.selection for r in found} == {"best"}
    for folder in values_of(words, "--save-models"):
        kept = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
        assert sorted(told["accuracy"] for told in kept) == sorted(r.value for r in found)
        assert len(list(Path(folder).glob("*.safetensors"))) == len(found)


def check_assessed(words: list[str], root: Path) -> None:
    (arch,) = values_of(words, "--models-pool")
    found = [r for r in read_records(Path(words[1]) / LEDGER) if r.protocol.startswith("assess")]
    (told,) = [r for r in found if r.metric == "original-model-accuracy" and r.arch == arch]
    assert 0 <= told.value <= 1


def schooling_of(words: list[str], flag: str) -> dict[str, Any]:
    """What a schooling that is named after a flag comes to, with the flags beside it."""
    (name,) = values_of(words, flag)
    return find_schooling(name).model_dump(mode="json")


def yaml_like(value: Any) -> str:
    """A value as text, whole numbers without their fraction."""
    try:
        return f"{float(value):g}"
    except (TypeError, ValueError):
        return str(value)


NOT_OF_METHODS = {
    "--data", "--ipc", "--steps", "--arch", "--out", "--store", "--threads", "--quiet",
    "--schooling.epochs", "--keep", "--alphas", "--models-pool", "--model-num", "--originals",
}  # fmt: skip


def check_imported(words: list[str], root: Path) -> None:
    (folder,), (augment,) = values_of(words, "--out"), values_of(words, "--augment")
    made = load(Path(folder))
    assert (made.label_kind, made.augment, made.lr) == ("probs", augment, pytest.approx(0.1))


def check_converted(words: list[str], root: Path) -> None:
    (out,) = values_of(words, "--out")
    made = validate(*load_recipe(out))
    assert (made.method.areas.beta, made.method.parameters.share, made.outer.steps) == (1, 0.25, 9)


CHECKS = {
    "import": check_imported,
    "recipes": check_converted,
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


# And of EDC's branches: squeeze, recover, relabel, train, by their parsers and the released page.
THEIRS_EDC = (
    "model dataset data_path squeeze_path train_epochs arch-name exp-name syn-data-path batch-size "
    "lr iteration ipc-number train-data-path category-aware training-momentum drop-rate r-loss "
    "first-multiplier l2-scale tv-l2 nuc-norm tau jitter average_grad_ratio flatness "
    "flatness-weight ema_alpha verifier verifier-arch store-best-images initial-img-dir "
    "statistic-path pre-train-path gpu-id workers epochs fkd-seed fkd_seed seed input-size "
    "min-scale-crops max-scale-crops mix-type use-fp16 candidate-number fkd-path mode data "
    "temperature class-number shuffle-patch wandb-project ce-weight st ema-dr ls-type alrs-dr "
    "loss-type sgd sgd-lr learning-rate adamw-lr adamw-weight-decay weight-decay momentum "
    "gradient-accumulation-steps output-dir train-dir val-dir keep-topk"
)


# And of EDF's buffer script (PAD's too), its evaluation, and the keys of its configurations.
THEIRS_EDF = (
    "dataset subset model res num_experts lr_teacher batch_train batch_real dsa dsa_strategy "
    "data_path buffer_path train_epochs zca decay mom l2 save_interval rho_max rho_min alpha "
    "adaptive sort_method init_ratio add_end_epoch rm_epoch_first rm_epoch_second "
    "rm_easy_ratio_first rm_easy_ratio_second lr_dir data_dir label_dir eval_mode no_aug "
    "epoch_eval_train parall_eva"
)


def test_every_key_of_a_configuration_is_mapped() -> None:
    (page,) = [path for path in PAGES if path.stem == "edf"]
    rows = [line.split("|") for line in page.read_text("utf-8").splitlines() if line[:1] == "|"]
    theirs = " ".join(row[1] for row in rows)
    keys = (*edf_config.DEFAULTS, *edf_config.OWN, *edf_config.DEAD, *edf_config.REFUSED)
    assert not [key for key in keys if f"`{key}`" not in theirs]


@pytest.mark.parametrize(
    ("stem", "options"), [("clom", THEIRS), ("edc", THEIRS_EDC), ("edf", THEIRS_EDF)]
)
def test_every_option_is_mapped(stem: str, options: str) -> None:
    (page,) = [path for path in PAGES if path.stem == stem]
    rows = [line.split("|") for line in page.read_text("utf-8").splitlines() if line[:1] == "|"]
    theirs = " ".join(row[1] for row in rows)
    missing = [name for name in options.split() if not re.search(rf"--{name}(?![\w-])", theirs)]
    assert not missing
    assert all(row[2].strip() for row in rows)


def test_what_has_no_counterpart_says_why() -> None:
    text = next(path for path in PAGES if path.stem == "edc").read_text("utf-8")
    refused = [line for line in text.splitlines() if re.match(r"\| `-[^|]*\| refused", line)]
    assert len(refused) >= 7
    assert all(re.search(r"refused[^:]*: \w+", line) for line in refused)
