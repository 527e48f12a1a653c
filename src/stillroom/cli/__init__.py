"""The command line: a thin skin over `stillroom.run`. torch is imported inside commands only."""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import NoReturn

from cyclopts import App, CycloptsError

import stillroom
from stillroom.cli.elsewhere import meant
from stillroom.errors import StillroomError
from stillroom.session import Interrupted

app = App(
    name="stillroom",
    help="Make, judge, compare and ship distilled data sets.",
    version=stillroom.__version__,
    help_format="plaintext",
    result_action="return_value",
)
VERBS = {  # imported when they are called, so that --help stays quick
    "distill": ("distill:app", "Make a set: METHOD with flags, or a recipe."),
    "prepare": ("prepare:app", "Make what is needed, alone: trained networks, labels of them."),
    "assess": ("assess:assess", "Measure a set without training students on it."),
    "evaluate": ("evaluate:evaluate", "Train students on a set and test them on real images."),
    "reproduce": ("reproduce:reproduce", "Make one number of the ledger again: pass or fail."),
    "report": ("report:report", "Write one self-contained page about sets."),
    "challenge": ("challenge:app", "The ECCV 2024 evaluator, and what goes into it."),
    "comp-dd": ("comp_dd:app", "The Comp-DD benchmark: its subsets, complexity of classes."),
    "inspect": ("house:inspect", "Show what a set is."),
    "import": ("imports:import_", "Make a set of tensors in files."),
    "export": ("house:export", "Write a set in another form."),
    "cite": ("house:cite", "Print the BibTeX of what made a set."),
    "recipes": ("house:recipes", "List or show the recipes inside the package."),
    "store": ("house:store", "List, verify or clean the folder of cached work."),
}
for _verb, (_where, _about) in VERBS.items():
    app.command(f"stillroom.cli.{_where}", name=_verb, help=_about)


def main(argv: list[str] | None = None) -> NoReturn:
    """Entry point: bad input gives one line and exit code 2, Ctrl-C gives 130."""
    share_cores()
    arguments = sys.argv[1:] if argv is None else argv

    def leave(number: int, frame: object) -> None:
        # Libraries do not bear an exception in the middle of their import. A run that may lose
        # something has a handler of its own; everything else may be killed at any moment.
        os._exit(_interrupted(arguments))

    signal.signal(signal.SIGINT, leave)
    sys.exit(run(arguments))


def share_cores() -> None:
    """Let OpenMP's threads sleep soon when they wait; must be set before torch is loaded.

    By default they spin for milliseconds. Alone on a machine that saves a few percent; beside one
    other busy process on the same cores it costs more than the work itself. What the user has set
    stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return 0
    except CycloptsError as error:
        told = " ".join(str(error).split()) + "; see --help"
        return fail(_misnamed(arguments) or _meant(arguments, told) or told)
    except StillroomError as error:
        return fail(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader went away, as `| head` does
        return 0
    except MemoryError:
        return fail("out of memory; lower --ipc, --batch-real or --size (see --plan)")
    except (KeyboardInterrupt, Interrupted):
        return _interrupted(arguments)
    except RuntimeError as error:
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            return fail("out of memory; lower --ipc, --batch-real or --size (see --plan)")
        raise


def fail(text: str) -> int:
    """Print one line of error; returns exit code 2."""
    from rich.console import Console
    from rich.markup import escape

    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"[bold red]error:[/] {escape(line)}", highlight=False)
    return 2


def _misnamed(arguments: list[str]) -> str:
    """What is wrong with `distill NAME` where NAME is no method: its flags look unknown then."""
    if len(arguments) < 2 or arguments[0] != "distill":
        return ""
    from stillroom.cli.distill import unknown_method
    from stillroom.methods import PRESETS

    if arguments[1].startswith("-"):
        return f"name a method first: distill {', '.join(PRESETS)}, or a recipe"
    return unknown_method(arguments[1])


def _meant(arguments: list[str], told: str) -> str:
    """A better hint than a similar name, where people of this field mean something else."""
    verb, name = (*arguments, "", "")[:2]
    flag = re.search(r"Unknown option: [^\w-]*(-[\w-]+)", told)
    inner = {"--lr": "--images.lr", "--momentum": "--images.momentum", "--iterations": "--steps"}
    # What is missing goes by another name in the papers' scripts, if one of their options is there.
    lacking = "requires an argument" in told
    given = [flag[1]] if flag else [a.partition("=")[0] for a in arguments if lacking]
    for text in (meant(verb, name, one) for one in given):
        if text:
            return text
    if verb == "distill" and flag and len(arguments) > 1 and arguments[1] not in _presets():
        return f"{told}; behind a recipe settings are key.sub=value, such as outer.steps=5"
    if verb == "distill" and flag and flag[1] in inner:
        return f"Unknown option: {flag[1]}. Did you mean {inner[flag[1]]}?; see --help"
    if verb == "evaluate" and told.startswith("Unused Tokens"):
        return "evaluate judges one SET; others to compare it with go behind --against"
    others = {"show": "inspect", "eval": "evaluate"}
    if verb in others:
        return f"{verb!r} is no command; did you mean {others[verb]!r}?; see --help"
    return ""


def _presets() -> tuple[str, ...]:
    from stillroom.methods import PRESETS

    return tuple(PRESETS)


def _interrupted(arguments: list[str]) -> int:
    import shlex

    line = f"\nstopped; go on with:\n  stillroom {shlex.join(arguments)}"
    print(line, file=sys.stderr, flush=True)
    return 130
