"""What a pickle would make, judged by its instructions before any of them is followed.

`weights_only` runs no foreign code, but a few bytes of a pickle that it takes may fill the memory:
`bytearray(n)`, or lists of lists.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path

from stillroom.errors import StillroomError
from stillroom.nets.zoo.factories import one_line

ZIP = b"PK\x03\x04"  # how an archive of torch begins
MAX_PICKLE = 16 * 2**20  # bytes of a file that are no numbers: some 150 a tensor
PARTS = 5  # pickles of a file from before PyTorch 1.6, of which storages follow
HUNGRY = ("builtins", "__builtin__", "_codecs")  # modules that tensors need nothing of
SIZED = ("collections Counter", "collections defaultdict")


def refuse_hungry(path: Path, source: Path | bytes) -> None:
    """Look at what `torch.save` pickled, in a zip or before it; `source`: where it is read from.

    Raises: StillroomError naming `path` and what is called, or that it is too long or no pickle.
    """
    try:
        if _first(source) != ZIP:  # torch goes by the first bytes, zipfile by the last
            raise zipfile.BadZipFile
        with zipfile.ZipFile(source if isinstance(source, Path) else io.BytesIO(source)) as archive:
            _refuse_shifted(path, archive)
            members = [m for m in archive.infolist() if m.filename.lower().endswith(".pkl")]
            if sum(m.file_size for m in members) > MAX_PICKLE:
                raise StillroomError(
                    f"{path}: lists more than tensors would (an array of numpy? save "
                    "torch.from_numpy(images)); not read (its pickle is larger than "
                    f"{MAX_PICKLE // 2**20} MiB)"
                )
            for member in members:
                _judge(path, io.BytesIO(archive.read(member)))
        return
    except (OSError, zipfile.BadZipFile):
        pass
    stream = io.BytesIO(source if isinstance(source, bytes) else source.read_bytes())
    for _ in range(PARTS):
        _judge(path, stream)


def _first(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[: len(ZIP)]
    with source.open("rb") as stream:
        return stream.read(len(ZIP))


def _refuse_shifted(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive whose directory lies elsewhere than its end says.

    Python goes by the end and torch by the offset there: they would read two archives in one file.
    """
    end = zipfile._EndRecData(archive.fp)  # type: ignore[attr-defined]
    if end[zipfile._ECD_OFFSET] != archive.start_dir:  # type: ignore[attr-defined]
        raise StillroomError(f"{path}: something else lies before its archive; save it again")


def _judge(path: Path, stream: io.BytesIO) -> None:
    """One pickle, if the stream has not ended; afterwards it stands behind it.

    What cannot be judged to its end is refused: the reader might follow it farther.
    """
    texts: list[str] = []  # the last two that were pushed: module and name of a STACK_GLOBAL
    begin = stream.tell()
    if begin == stream.getbuffer().nbytes:
        return
    try:
        for code, argument, position in pickletools.genops(stream):
            if (position or 0) - begin > MAX_PICKLE:
                raise StillroomError(f"{path}: lists more than tensors would; not read")
            called = argument if code.name == "GLOBAL" else None
            if code.name == "STACK_GLOBAL":
                called = " ".join(texts[-2:])
            elif isinstance(argument, str):
                texts = [*texts[-1:], argument]
            if isinstance(called, str) and (called.split(" ")[0] in HUNGRY or called in SIZED):
                raise StillroomError(
                    f"{path}: holds more than tensors ({called.replace(' ', '.')[:80]}); save "
                    "plain tensors alone"
                )
    except StillroomError:
        raise
    except Exception as error:  # pickletools has several for what is no pickle
        raise StillroomError(
            f"{path}: not a whole checkpoint ({one_line(error)}); copy it again"
        ) from None
