"""From pydantic models to flags: one keyword a field, `None` unless it was given.

Models never reach cyclopts: it would parse the source of pydantic itself for docstrings, 0.3 s of
every `--help`. So only explicit choices travel on, and one validator sees them.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, TypeVar, get_args, get_origin

from cyclopts import Group, Parameter
from pydantic import BaseModel, ValidationError

from stillroom.errors import StillroomError

SEPARATOR = "__"
SCHOOLED = (
    "default, clom, edc, edc-cifar100, edc-tiny (the last three also as ...-released), "
    "edc-imagenet10, sre2l-cifar100, sre2l-tiny, torchvision, or NAME+epochs=N"
)
FOLLOWED = "mtt, ftd, ftd-small, datm, pad, or NAME+epochs=N"  # experts
M = TypeVar("M", bound=BaseModel)


PANELS = {
    name: Group.create_ordered(name, sort_key=i)
    for i, name in enumerate(
        ("Run", "Method", "Outer loop", "Regulariser", "Recipe", "Data", "Machine")
    )
}


def of_model(
    model: type[BaseModel],
    slot: str,
    group: str,
    defaults: dict[str, Any] | None = None,
    skip: Iterable[str] = (),
    prefix: str = "",
) -> list[inspect.Parameter]:
    """Parameters `<slot>__<field>` for every field of `model`, nested models included.

    The flag of a nested field is `--outer-field.inner-field`; help shows the default that applies.
    A model that goes by a name (`by_name`) has a flag for that too, and deeper only that one.
    """
    found: list[inspect.Parameter] = []
    panel = PANELS[group]
    for name, info in model.model_fields.items():
        if name in skip:
            continue
        own = info.get_default(call_default_factory=True) if not info.is_required() else None
        default = (defaults or {}).get(name, own)
        inner = _model_in(info.annotation)
        if inner is not None:
            if default is None:
                continue  # a learnable that this method does not have
            if by_name := getattr(inner, "by_name", ""):
                found.append(
                    _named(f"{slot}{SEPARATOR}{name}", f"--{prefix}{name}", by_name, panel)
                )
                if prefix:
                    continue
            given = dict(default)  # of a model too: dumping one would build its validator
            found += of_model(
                inner, f"{slot}{SEPARATOR}{name}", group, given, (), f"{prefix}{name}."
            )
            continue
        flag = f"--{prefix}{name}".replace("_", "-")
        shown = "" if default in (None, ()) else f" [default: {default}]"
        boolean = info.annotation is bool
        parameter = Parameter(
            name=flag,
            help=f"{info.description or ''}{shown}",
            group=panel,
            negative="" if boolean and default is False and slot != "schooling" else None,
            converter=_converter(info.annotation),
            consume_multiple=get_origin(info.annotation) is tuple,
        )
        kind: Any = info.annotation
        annotation: Any = Annotated[kind | None, parameter]
        found.append(keyword(f"{slot}{SEPARATOR}{name}", annotation))
    return found


def _named(name: str, flag: str, known: str, panel: Group) -> inspect.Parameter:
    """The flag of a model that goes by a name."""
    told = Parameter(name=flag.replace("_", "-"), help=known, group=panel)
    return keyword(name, Annotated[str | None, told])


def keyword(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    """A keyword-only parameter."""
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
    )


def flag(kind: Any, help: str, name: str | None = None, switch: bool = False) -> Any:
    """An annotation for a flag of the "Run" panel; a switch has no `--no-` form."""
    parameter = Parameter(
        name=name,
        help=help,
        group=PANELS["Run"],
        negative="" if switch else None,
        converter=_converter(kind),
    )
    return Annotated[kind, parameter]


def several(kind: Any, help: str, panel: str = "Run") -> Any:
    """An annotation for a flag of one or more values, `--arch a b c`, None unless it was given."""
    parameter = Parameter(help=help, group=PANELS[panel], consume_multiple=True, negative="")
    return Annotated[list[kind] | None, parameter]


def whole(kind: Any, tokens: Sequence[Any]) -> int:
    """A whole number; cyclopts itself would round 2.5 to 2."""
    text = tokens[0].value
    if len(text) > 40 or not re.fullmatch(r"[+-]?[0-9]+", text.strip()):
        raise ValueError(f"{text[:40]!r} is not a whole number")
    return int(text)


def wholes(kind: Any, tokens: Sequence[Any]) -> tuple[int, ...]:
    """Whole numbers, one after another."""
    return tuple(whole(int, [token]) for token in tokens)


def whole_or_none(kind: Any, tokens: Sequence[Any]) -> int | None:
    """A whole number, or nothing."""
    return None if tokens[0].value.strip().lower() == "none" else whole(int, tokens)


def _converter(kind: Any) -> Callable[..., Any] | None:
    if int not in (kind, *get_args(kind)):
        return None
    if type(None) in get_args(kind):
        return whole_or_none
    return wholes if get_origin(kind) is tuple else whole


class _Nothing:
    """What an option is that was told to be `none`, as opposed to one that was not given."""


NOTHING = _Nothing()


def with_signature(
    function: Callable[..., None], parameters: list[inspect.Parameter], doc: str
) -> Callable[..., None]:
    """Give a `**values` function a written-out signature; absent values become their defaults."""
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}

    def call(*args: Any, **values: Any) -> None:
        named = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_ONLY]
        rest = args[len(named) :]
        taken = dict(zip(named, args, strict=False))
        if rest:
            taken["rest"] = rest
        for name, value in values.items():
            if value == []:
                raise StillroomError(f"--{name.replace('_', '-')} needs at least one value")
            if value is None and SEPARATOR in name:  # none, as it was told
                values[name] = NOTHING
        function(**{**defaults, **taken, **values})

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    call.__doc__ = doc
    return call


def chosen(values: dict[str, Any], slot: str) -> dict[str, Any]:
    """The choices of a slot that were made, nested by their dots."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        parts = name.split(SEPARATOR)
        if parts[0] != slot or value is None:
            continue
        level = found
        for part in parts[1:-1]:
            level = level.setdefault(part, {})
            if not isinstance(level, dict):
                field = parts[-1].replace("_", "-")
                raise StillroomError(
                    f"--{part} {level} and --{part}.{field}: write {level}+{parts[-1]}={value}"
                )
        level[parts[-1]] = None if value is NOTHING else value
    return found


@contextlib.contextmanager
def as_flags() -> Iterator[None]:
    """Errors of a block that name fields of a recipe name the flags that set them instead."""
    try:
        yield
    except StillroomError as error:
        text = re.sub(
            r"\b(?:method|outer)\.([a-z][\w.]*):(?= )",
            lambda m: f"--{m[1].replace('_', '-')}:",
            str(error),
        )
        raise StillroomError(text.replace(": recipe: ", ": ")) from None


def refuse_unread_data(values: dict[str, Any]) -> None:
    """Refuse options of data that are not read again.

    Raises: StillroomError naming the first.
    """
    unread = [] if values["data"] is not None else list(chosen(values, "options"))
    if unread:
        name = unread[0].replace("_", "-")
        raise StillroomError(f"--{name} is about data that are read again; name them: --data")


def settle(model: type[M], values: dict[str, Any], slot: str) -> M:
    """Validate the choices of a slot.

    Raises: StillroomError naming the flag.
    """
    try:
        return model(**chosen(values, slot))
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + ".".join(str(p) for p in first["loc"]).replace("_", "-")
        raise StillroomError(f"{name}={first['input']!r}: {first['msg']}") from None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and get_origin(part) is None and issubclass(part, BaseModel):
            return part
    return None
