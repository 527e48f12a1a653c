"""Every accuracy of the README's table is what the ledger says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from stillroom.evaluation.statistics import summarise
from stillroom.records import NETWORK_ACCURACY, read_records
from stillroom.reported import reported
from stillroom.run.cells import distilling
from stillroom.run.studies import _of, clom_study, taught_study
from stillroom.tables import Line, compare, lines, percent, size, span

ROOT = Path(__file__).resolve().parents[2]
DATA = {
    "digits": "digits",
    "CIFAR-10 (JPEG)": "cifar10",
    "ten classes of Tiny-ImageNet, a folder of JPEGs": "ten classes",
}
ROW = re.compile(  # data, images a class, set, accuracy, n, reported, protocol, numerics
    r"^\| ([^|]+) \| (\d+) \| ([^|]+) \| ([\d.]+ \([^|]+\)) \| ([^|]+) \| [^|]+ \| "
    r"`([^`]+)`([^|]*) \|"
)
TOLD = [
    found.groups() for x in (ROOT / "README.md").read_text().splitlines() if (found := ROW.match(x))
]


def ledger() -> dict[tuple[str, ...], Line]:
    """Rows by what pages call them; of a baseline that some students saw bare, the usual one."""
    found = lines(read_records(ROOT / "results" / "records.jsonl"))
    found.sort(key=lambda x: x.conditions.augment != "none")
    return {
        (x.conditions.benchmark, str(x.conditions.ipc), x.row, x.protocol, x.numerics): x
        for x in found
    }


def test_the_table_was_found() -> None:
    assert len(TOLD) > 8


@pytest.mark.parametrize("row", TOLD, ids=lambda row: f"{row[0][:8]}-{row[1]}-{row[2][:10]}")
def test_a_number_of_the_readme_is_a_line_of_the_ledger(row: tuple[str, ...]) -> None:
    data, ipc, name, told, n, protocol, more = row
    named = re.sub(r", (\d+) steps", r"@\1", name)
    numerics = "bf16" if more.startswith(", bf16") else "float32"
    line = ledger()[DATA[data], ipc, named, protocol, numerics]
    s = line.summary
    assert told == f"{percent(s.mean)} ({percent(s.low)} to {percent(s.high)})"
    assert n == f"{s.n} {line.counts}"


NUMERICS = re.compile(r"^\| ([a-z-]+) \| (\d+) \| ([\d.]+ \([^|]+\)) \| ([\d.]+ \([^|]+\)) \|$")
DM = re.compile(
    r"^\| (\d+) \| [\d.]+ ± [\d.]+ \| ([\d.]+ \([^|]+\)) \| (\d+) \| ([^|]+) "
    r"\| (\w+@1)(, bf16)? \|$"
)


def told_in(page: str, row: re.Pattern[str]) -> list[tuple[str, ...]]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [found.groups() for x in text.splitlines() if (found := row.match(x))]


def interval(line: Line) -> str:
    s = line.summary
    return f"{percent(s.mean)} ({percent(s.low)} to {percent(s.high)})"


def test_what_bf16_does_is_what_the_ledger_says() -> None:
    rows = told_in("numerics-and-speed.md", NUMERICS)
    assert len(rows) == 5
    for name, ipc, *told in rows:
        lines = [ledger()["cifar10", ipc, name, "vico@1", n] for n in ("float32", "bf16")]
        assert told == [interval(line) for line in lines], name


def test_what_bf16_does_to_gradient_matching_is_what_the_ledger_says() -> None:
    row = re.compile(
        r"^\| (d\w+@\d+), (one|ten) images? a class \| `([^`]+)` \| ([^|]+) \| ([^|]+) \|$"
    )
    rows, held = told_in("numerics-and-speed.md", row), ledger()
    assert len(rows) >= 2
    for name, images, protocol, *told in rows:
        ipc = {"one": "1", "ten": "10"}[images]
        lines = [held["cifar10", ipc, name, protocol, n] for n in ("float32", "bf16")]
        assert told == [interval(line) for line in lines], name
        low, high = sorted((line.summary for line in lines), key=lambda s: s.mean)
        assert not low.separate_from(high)


def test_networks_of_the_page_are_those_of_the_ledger() -> None:
    """Test accuracies of the originals that `docs/methods/clom.md` names."""
    text = " ".join((ROOT / "docs/methods/clom.md").read_text(encoding="utf-8").split())
    found: dict[tuple[str, str], list[float]] = {}
    for r in read_records(ROOT / "results" / "records.jsonl"):
        if r.metric == NETWORK_ACCURACY:
            found.setdefault((r.benchmark, r.arch), []).append(r.value)
    one, two, three = map(percent, found["cifar10", "convnet3"])
    assert f"{one}, {two} and {three} %" in text
    pool = {arch: summarise(some) for (data, arch), some in found.items() if data == "digits"}
    assert len(pool) == 4
    for arch, s in pool.items():
        assert s.n == 3
        assert f"{percent(s.mean)} % for `{arch}`" in text


def test_the_rows_of_dm_are_lines_of_the_ledger() -> None:
    rows = told_in("methods/dm.md", DM)
    assert len(rows) >= 12
    for ipc, told, step, n, protocol, numerics in rows:
        key = ("cifar10", ipc, f"dm@{step}", protocol, "bf16" if numerics else "float32")
        line = ledger()[key]
        assert (told, n) == (interval(line), f"{line.summary.n} {line.counts}"), key


BYTES = re.compile(
    r"^\| (dm@6000|random-jpeg) \| (\d+) \| ([\d.]+ [kM]B) \| ([\d.]+ \([^|]+\)) \|$"
)


def test_what_bytes_buy_is_what_the_ledger_says() -> None:
    rows = told_in("methods/dm.md", BYTES)
    assert len(rows) == 4
    for name, ipc, held, told in rows:
        line = ledger()["cifar10", ipc, name, "quick@1", "bf16"]
        assert (held, told) == (size(line.bytes), interval(line)), (name, ipc)


DC = re.compile(
    r"^\| (dc|dsa) \| (\d+) \| [\d.]+ ± [\d.]+ \| ([\d.]+ \([^|]+\)) after ([\d,]+) "
    r"(?:of [\d,]+ )?steps( in bf16)? \|$"
)
DC_TEXT = {  # number in the text under the table -> row, protocol, numerics
    "24.3 (23.2 to 25.4)": ("dsa@100", "vico@1", "float32"),
    "26.3 (25.2 to 27.3)": ("dsa@250", "vico@1", "float32"),
    "26.1 (25.1 to 27.1)": ("dsa@250", "vico@1", "bf16"),
    "28.0 (26.6 to 29.4)": ("dsa@500", "vico@1", "bf16"),
    "16.2 (14.9 to 17.6": ("random", "vico@1", "float32"),
    "22.6 (22.2 to 23.1)": ("class-mean", "vico@1", "float32"),
    "14.8 (13.5 to 16.1": ("random", "vico-plain@1", "float32"),
    "23.2 (22.8 to 23.6)": ("class-mean", "vico-plain@1", "float32"),
    "27.4 (25.6 to 29.2)": ("dc@100", "vico-plain@1", "float32"),
    "27.7 (25.9 to 29.5)": ("dc@250", "vico-plain@1", "float32"),
    "27.8 (25.5 to 30.1)": ("dc@250", "vico-plain@1", "bf16"),
    "27.7 (25.9 to 29.5": ("dc@500", "vico-plain@1", "bf16"),
}
NUMERICS_OF = {"": "float32", None: "float32", " in bf16": "bf16"}


MINUTES = re.compile(r"^\| (dm|dsa) \| (\d+) \| (\d+) \| ([\d.]+ \([^|]+\)) \|$")


def test_half_an_hour_of_two_cores_is_what_the_ledger_says() -> None:
    rows, held = told_in("methods/dc.md", MINUTES), ledger()
    assert len(rows) == 6
    records = read_records(ROOT / "results" / "records.jsonl")
    found = {}
    for name, steps, minutes, told in rows:
        line = held["cifar10", "10", f"{name}@{steps}", "quick@1", "float32"]
        assert told == interval(line), (name, steps)
        taken = distilling(line, records)
        assert taken is not None
        assert minutes == f"{taken / 60:.0f}", (name, steps)
        found[name, steps] = line.summary
    assert found["dm", "90"].separate_from(found["dsa", "80"])
    assert found["dm", "90"].mean > found["dsa", "80"].mean


TRAJECTORY = re.compile(r"^\| ([a-z-]+(?:@300)?) \| `(mtt@1|datm@1)` \| ([\d.]+ \([^|]+\)) \|$")
PAPERS = re.compile(r"^\| (\w+) \| ([\d.]+ ± [\d.]+) \| ([\d.]+ ± [\d.]+) \| ([\d.]+ ± [\d.]+) \|$")


def test_rows_of_trajectory_matching_are_lines_of_the_ledger() -> None:
    rows, held = told_in("methods/mtt.md", TRAJECTORY), ledger()
    assert len(rows) == 11
    found = {}
    for name, protocol, told in rows:
        line = held["digits", "1", name, protocol, "float32"]
        assert told == interval(line), name
        found[name, protocol] = line.summary
    for (name, protocol), own in found.items():
        if name.endswith("@300"):
            assert own.high >= found["dm@300", protocol].low
            assert own.mean > found["class-mean", "mtt@1"].mean
    for name in ("class-mean", "k-means", "random"):
        other = held["digits", "1", name, "datm@1", "float32"]
        assert interval(other) == interval(held["digits", "1", name, "mtt@1", "float32"])


WHITENED = re.compile(r"^\| CIFAR-10 \| ([a-z-]+(?:@\d+)?) \| `(\w+@1)` \| ([\d.]+ \([^|]+\)) \|$")


def test_rows_of_whitened_images_are_lines_of_the_ledger() -> None:
    """And each method is five points above class means, its interval apart from dm's."""
    rows, held = told_in("methods/mtt.md", WHITENED), ledger()
    assert len(rows) == 19
    for name, protocol, told in rows:
        numerics = "bf16" if name.startswith("dm@") else "float32"
        assert told == interval(held["cifar10", "1", name, protocol, numerics]), name
    for last, protocol in (("mtt@1600", "mtt@1"), ("datm@500", "datm@1"), ("edf@1000", "edf@1")):
        own = held["cifar10", "1", last, protocol, "float32"].summary
        mean = held["cifar10", "1", "class-mean", protocol, "float32"].summary
        matched = held["cifar10", "1", "dm@1000", protocol, "bf16"].summary
        assert own.mean >= mean.mean + 0.05
        assert own.separate_from(mean)
        assert own.separate_from(matched)
        assert own.mean > matched.mean


TINY10 = re.compile(r"^\| tiny10 \| ([a-z-]+(?:@\d+)?) \| `(\w+@1)` \| ([\d.]+ \([^|]+\)) \|$")


def test_rows_of_ten_classes_are_lines_of_the_ledger() -> None:
    rows, held = told_in("methods/mtt.md", TINY10), ledger()
    assert len(rows) == 4
    for name, protocol, told in rows:
        assert told == interval(held["tiny10", "1", name, protocol, "float32"]), name
    own, drawn = (held["tiny10", "1", n, "edf@1", "float32"].summary for n in ("edf@150", "random"))
    assert own.separate_from(drawn)


def test_papers_numbers_of_trajectory_matching_are_the_reported_ones() -> None:
    known = {(r.row, r.benchmark, r.ipc, r.arch): r for r in reported()}
    rows = told_in("methods/mtt.md", PAPERS)
    assert len(rows) == 5
    for name, *told in rows:
        some = [known[name, "cifar10", ipc, "convnet3"] for ipc in (1, 10, 50)]
        stds = [100 * float(r.versions["std"]) for r in some]
        assert told == [f"{100 * r.value:.1f} ± {s:.1f}" for r, s in zip(some, stds, strict=True)]


def test_what_clom_does_is_the_study_of_the_ledger() -> None:
    """Rows of the page are those of REPRODUCTION.md's section, and so are both correlations."""
    study = clom_study(read_records(ROOT / "results" / "records.jsonl"))
    made = [line.strip("| ").split(" | ") for line in study.splitlines() if line[:3] == "| d"]
    text = (ROOT / "docs/methods/clom.md").read_text(encoding="utf-8")
    told = [
        line.strip("| ").split(" | ")
        for line in text.splitlines()
        if line[:3] == "| d" and "+clom@" in line
    ]
    assert told == [[row[0], *row[3:]] for row in made if "quick@1" in row]
    assert len(told) == 3
    assert all(row[2].split(", ") in (["4", "4"], ["5", "4"]) for row in made)
    flat = " ".join(text.split())
    pattern = r"r = ([\d.]+) \(95 % interval ([-\d.]+) to ([-\d.]+); (ranks [\d.]+)\)"
    found = re.findall(pattern, study)
    assert len(found) == 3
    for r, low, high, ranks in found:
        assert f"r = {r} ({low} to {high}; {ranks})" in flat


def test_what_clom_costs_is_counted() -> None:
    """Against plain runs as long as the term's originals and distilling together."""
    records = read_records(ROOT / "results" / "records.jsonl")
    text = " ".join((ROOT / "docs/methods/clom.md").read_text(encoding="utf-8").split())
    held = ledger()
    for added, plain, told in (
        ("dm+clom@160", "dm@540", "by {} points ({} to {}) with `dm`"),
        ("dsa+clom@27", "dsa@80", "by {} ({} to {}) with `dsa`"),
    ):
        lines_ = [held["cifar10", "10", row, "quick@1", "float32"] for row in (added, plain)]
        gap = compare(*(_of(line, records) for line in lines_))
        assert gap is not None
        d = gap.difference
        assert told.format(percent(d.mean), percent(d.low), percent(d.high)) in text
        assert f"{interval(lines_[1])} for `{plain}`" in text
    paces = []  # minutes of three times the steps, and of the term with its originals
    originals = [r for r in records if r.metric == NETWORK_ACCURACY and r.benchmark == "cifar10"]
    for short, steps, added in (("dm@180", 540, "dm+clom@160"), ("dsa@27", 80, "dsa+clom@27")):
        made = {
            row: distilling(held["cifar10", "10", row, "quick@1", "float32"], records) or 0
            for row in (short, added)
        }
        plain_run = made[short] / int(short.partition("@")[2]) * steps
        whole = made[added] + sum(r.seconds for r in originals)
        paces.append((f"{plain_run / 60:.0f}", f"{whole / 60:.0f}"))
    (a, b), (c, d_) = paces
    assert f"{a} minutes of `dm` and {c} of `dsa`" in text
    assert f"originals took {b} and {d_}" in text
    seen = {
        (r.row, r.arch): percent(r.value)
        for r in records
        if r.metric == "original-model-accuracy" and r.benchmark == "cifar10"
    }
    before, after = (
        [seen[row, net] for net in ("convnet2", "lenet")] for row in ("dc@27", "dc+clom@27")
    )
    assert f"of `dc`'s {before[0]} and {before[1]} % before" in text
    assert f"{after[0]} and {after[1]} % after" in text
    assert seen["dm+clom@160", "convnet2"] == seen["dsa+clom@27", "convnet2"] == "100.0"


def test_numbers_of_gradient_matching_are_lines_of_the_ledger() -> None:
    rows, held = told_in("methods/dc.md", DC), ledger()
    assert rows
    for name, ipc, told, steps, bf16 in rows:
        protocol, row = "vico@1" if name == "dsa" else "vico-plain@1", f"{name}@{steps}"
        s = held["cifar10", ipc, row.replace(",", ""), protocol, NUMERICS_OF[bf16]].summary
        assert told == f"{percent(s.mean)} ({percent(s.low)} to {percent(s.high)})"
    text = (ROOT / "docs" / "methods" / "dc.md").read_text(encoding="utf-8")
    for told, (name, protocol, numerics) in DC_TEXT.items():
        s = held["cifar10", "1", name, protocol, numerics].summary
        assert f"{percent(s.mean)} ({percent(s.low)} to {percent(s.high)})".startswith(told)
        assert told in text
    for name, protocol, numerics in (
        ("dsa@1000", "vico@1", "bf16"),
        ("dc@1000", "vico-plain@1", "bf16"),
        ("dsa@250", "vico@1", "float32"),
        ("dc@250", "vico-plain@1", "float32"),
        ("dc@100", "vico-plain@1", "float32"),
    ):
        own = held["cifar10", "1", name, protocol, numerics].summary
        for other in ("random", "class-mean"):
            beside = held["cifar10", "1", other, protocol, numerics].summary
            assert own.low > beside.high, (name, other)


def test_ten_classes_of_tiny_imagenet_are_lines_of_the_ledger() -> None:
    text, held = " ".join((ROOT / "docs/methods/clom.md").read_text().split()), ledger()
    for row, words in (
        ("dsa+clom@40", "dsa+clom@40 {}"),
        ("dsa@40", "dsa@40 {}"),
        ("class-mean", "class means {}"),
        ("random", "random images {}"),
        ("k-means", "k-means {}"),
    ):
        line = held["tiny10", "1", row, "quick@1", "bf16"]
        told = interval(line).replace(")", ", 5 draws)") if row == "random" else interval(line)
        assert words.format(told) in text, row
        assert line.summary.n == 5


CPUS = {"two cores with AMX": 0, "two cores with AVX2 only": 1, "two cores with AVX-512": 2}


def test_the_table_of_a_step_of_gradient_matching_is_what_was_timed() -> None:
    """Seconds and ratios, machine by machine in the order of the file; then 100 classes."""
    ways = ("plain twin", "twin + allocator", "float32 eager", "bf16 eager", "float32 compiled",
            "bf16 compiled")  # fmt: skip
    timed = [json.loads(x) for x in (ROOT / "results/benchmarks.jsonl").read_text().splitlines()]
    runs: dict[str, list[dict[str, tuple[float, float]]]] = {}
    for x in timed:
        some = runs.setdefault(x["job"], [])
        if x["variant"] == "plain twin":
            some.append({})
        some[-1][x["variant"]] = (x["seconds"], x["ratio"])
    lines_ = (ROOT / "docs/numerics-and-speed.md").read_text(encoding="utf-8").splitlines()
    found = 0
    for i, text in enumerate(lines_):
        name = text.strip("| ").split(", s | ")[0]
        run = runs["dc-step"][CPUS[name]] if name in CPUS else None
        if name == "the same, 100 classes":
            (run,) = runs["dc-step-100"]
        if run is None or ", s | " not in text:
            continue
        found += 1
        cells = [x.split(" | ")[1:] for x in (text.strip("| "), lines_[i + 1].strip("| "))]
        for way, seconds, ratio in zip(ways, *cells, strict=True):
            if way not in run:
                assert (seconds, ratio) == ("-", "-")
                continue
            assert float(seconds) == pytest.approx(run[way][0], rel=5e-3), (name, way)
            assert float(ratio) == pytest.approx(run[way][1], abs=0.051), (name, way)
    assert found == 4
    together = runs["originals-vmap"][-1]
    told = " ".join(" ".join(lines_).split())
    a, b = together["twin + allocator"][0], together["float32 eager"][0]
    assert f"took {a:.1f} s in turn and {b:.1f} s together" in told


def test_the_table_of_recover_and_of_views_is_what_was_timed() -> None:
    timed = [json.loads(x) for x in (ROOT / "results/benchmarks.jsonl").read_text().splitlines()]
    of = {(x["job"], x["variant"]): x for x in timed}
    jobs = {
        "a step of recover (edc, ConvNet-3, 32 px), s": ("recover-step", 1.0),
        "views of an epoch, 32 px, batches of 25, ms": ("relabel-epoch", 1e3),
        "the same, 64 px, batches of 100, ms": ("relabel-epoch-64", 1e3),
        "the same, 224 px, batches of 100, ms": ("relabel-epoch-224", 1e3),
    }
    text = (ROOT / "docs/numerics-and-speed.md").read_text(encoding="utf-8")
    rows = {r[0]: r[1:] for r in (x.strip("| ").split(" | ") for x in text.splitlines())}
    for name, (job, unit) in jobs.items():
        told = rows[name]
        plain, eager = of[job, "plain twin"], of[job, "float32 eager"]
        assert float(told[0]) == pytest.approx(plain["seconds"] * unit, rel=5e-3)
        hinted = of[job, "twin + allocator"]
        assert float(told[1]) == pytest.approx(hinted["seconds"] * unit, rel=5e-3)
        assert float(told[2]) == pytest.approx(eager["seconds"] * unit, rel=5e-3)
        assert float(told[3]) == pytest.approx(eager["ratio"], abs=0.051)
    compiled = of["recover-step", "float32 compiled"]
    step = rows["a step of recover (edc, ConvNet-3, 32 px), s"]
    assert float(step[4]) == pytest.approx(compiled["seconds"], rel=5e-3)
    assert float(step[5]) == pytest.approx(compiled["ratio"], abs=0.051)
    assert compiled["compiled_from"] == pytest.approx(1500, abs=100)


def test_rows_of_labels_of_teachers_are_those_of_the_study() -> None:
    """Of REPRODUCTION.md's section: the same rows, in the same order, on the page of recover."""
    study = taught_study(read_records(ROOT / "results" / "records.jsonl"))
    rows = [line.strip("| ").split(" | ") for line in study.splitlines() if line[:3] != "|--"]
    online, stored = (
        [(r[0], r[3], r[5]) for r in rows if len(r) == 7 and r[2] == protocol]
        for protocol in ("edc-cifar10@1+epochs=300", "edc@1")
    )
    records = read_records(ROOT / "results" / "records.jsonl")
    ten = [
        (x.row, f"{percent(x.summary.mean)} ({span(x.summary)})",
         "-" if x.gap is None else percent(x.gap, sign=True) + (" *" if x.separate else ""))
        for x in lines([r for r in records if r.benchmark == "tiny10"])
        if x.conditions.protocol == "edc-tiny@2+epochs=100"
    ]  # fmt: skip
    text = (ROOT / "docs/methods/edc.md").read_text(encoding="utf-8")
    tables = [part.splitlines()[1:] for part in text.split("| set | accuracy, % |")[1:]]
    assert len(tables) == 3
    for table, made in zip(tables, (online, stored, ten), strict=True):
        told = [line.strip("| ").split(" | ") for line in table if line.startswith("| ")]
        found = [(r[0], r[1], r[2].replace(", intervals apart", " *")) for r in told]
        assert found == made
    for name in ("edc", "edc-paper", "sre2l", "gvbsm", "rded", "random", "k-means"):
        assert any(row[0].split("@")[0] == name for row in online), name
    page = " ".join((ROOT / "docs/methods/rded.md").read_text(encoding="utf-8").split())
    of = {row[0]: row[1] for row in online}
    assert f"{of['rded']} where random images with the same labels give {of['random']}" in page


@pytest.mark.parametrize(("preset", "protocol"), [("dc", "vico-plain@1"), ("dsa", "vico@1")])
def test_heads_of_recipes_that_were_run_say_what_the_ledger_says(
    preset: str, protocol: str
) -> None:
    head = (ROOT / f"src/stillroom/recipes/{preset}/cifar10-ipc1.yaml").read_text().splitlines()[2]
    line = ledger()["cifar10", "1", f"{preset}@1000", protocol, "bf16"]
    assert head.startswith(f"# ours: {interval(line)} % in bf16")


@pytest.mark.parametrize(
    ("job", "what"), [("expert-epoch", "experts"), ("challenge-epoch", "challenge")]
)
def test_the_tables_of_epochs_are_what_was_timed(job: str, what: str) -> None:
    timed = [json.loads(x) for x in (ROOT / "results/benchmarks.jsonl").read_text().splitlines()]
    of = {x["variant"]: x for x in timed if x["job"] == job}
    text = (ROOT / "docs/numerics-and-speed.md").read_text(encoding="utf-8")
    rows = {r[0]: r[1:] for r in (x.strip("| ").split(" | ") for x in text.splitlines())}
    ways = ("plain twin", "twin + allocator", "float32 eager", "bf16 eager", "float32 compiled",
            "bf16 compiled")  # fmt: skip
    seconds, ratios = (
        rows[f"two cores with AVX-512, {what}, s"],
        rows[f"ratio to the twin of {'the ' if what == 'challenge' else ''}{what}"],
    )
    for way, told, ratio in zip(ways, seconds, ratios, strict=True):
        assert float(told) == pytest.approx(of[way]["seconds"], abs=0.0051), way
        assert float(ratio) == pytest.approx(of[way]["ratio"], abs=0.051), way


def test_the_table_of_engines_is_what_was_measured() -> None:
    made = [json.loads(x) for x in (ROOT / "results/engines.jsonl").read_text().splitlines()]
    text = (ROOT / "docs/methods/mtt.md").read_text(encoding="utf-8")
    table = text.split("| inner steps | engine |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(table) == len(made) == 15
    for line, x in zip(table, made, strict=True):
        steps, engine, seconds, memory, error = line.strip("| ").split(" | ")
        kept = "" if x["engine"] == "unrolled" else f", {x['theta']}"
        assert (int(steps), engine) == (x["steps"], f"`{x['engine']}`{kept}")
        assert float(seconds) == pytest.approx(x["seconds"], abs=0.006)
        assert float(memory) == pytest.approx(x["memory"] / 1e6, abs=0.6)
        assert error == f"{x['error']:.0e}"
    of = {(x["steps"], x["engine"], x["theta"]): x for x in made}
    assert of[80, "exact", "device"]["memory"] < of[80, "unrolled", "device"]["memory"] / 4


SIDES = re.compile(r"^\| (\w+-(?:easy|hard)) " + 4 * r"\| ([\d.]+ \([^|]+\)) " + r"\|$")


def test_easy_and_hard_subsets_are_lines_of_the_ledger() -> None:
    """And which side is the harder one differs by category, as the page says it does."""
    rows, held = told_in("comp-dd.md", SIDES), ledger()
    assert len(rows) == 12
    found = {}
    for subset, *told in rows:
        names = ("dm@100", "class-mean", "k-means", "random")
        lines_ = [held[f"tiny-imagenet/{subset}", "10", n, "quick@1", "float32"] for n in names]
        assert told == [interval(line) for line in lines_], subset
        own, *cheap = (line.summary for line in lines_)
        assert own.mean > max(one.mean for one in cheap), subset
        assert own.separate_from(cheap[-1]), subset
        found[subset] = own
    harder = {}
    for category in {subset.partition("-")[0] for subset in found}:
        easy, hard = (found[f"{category}-{side}"] for side in ("easy", "hard"))
        harder[category] = easy.separate_from(hard) and ("hard", "easy")[hard.mean > easy.mean]
    assert harder == {
        **dict.fromkeys(("insect", "mammal", "vehicle", "building"), "easy"),
        **{"food": "hard", "clothing": False},
    }


def test_the_recipe_of_the_challenge_on_a_stand_in_is_in_the_ledger() -> None:
    page = " ".join((ROOT / "docs" / "challenge.md").read_text(encoding="utf-8").split())
    rows = ("dm@100", "random")
    own, drawn = (
        ledger()["standin100", "10", row, "eccv24@1+epochs=40", "float32"].summary for row in rows
    )
    assert f"{percent(own.mean)} % ({percent(own.low)} to {percent(own.high)}, 3 students)" in page
    assert f"{percent(drawn.mean)} % ({percent(drawn.low)} to {percent(drawn.high)}) of" in page
    assert (own.n, drawn.n, own.separate_from(drawn)) == (3, 5, True)
    for row, name in {"class-mean": "class means"}.items():
        cheap = ledger()["standin100", "10", row, "eccv24@1+epochs=40", "float32"].summary
        told = f"{percent(cheap.mean)} % ({percent(cheap.low)} to {percent(cheap.high)}) of {name}"
        assert told in page
        assert own.separate_from(cheap)
        assert own.mean > cheap.mean
