"""What a user can mend, what the machine lacks, and how either is said: in one line, whatever it names.

Names of files come from elsewhere. A newline in one would begin a second line, an escape sequence would be obeyed by the
terminal: `one_line` writes such characters as escapes, and every `TresseError` and every line of `complain` goes through it.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ESCAPED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that a terminal may obey, or not show."""
MENDS = {
    errno.ENOSPC: "free some space there or choose another place, then run it again",
    errno.EDQUOT: "free some space there or choose another place, then run it again",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "choose a place that can be written to, or change its permissions",
    errno.EPERM: "choose a place that can be written to, or change its permissions",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs, then run it again",
    errno.ENOMEM: "close other programs, then run it again",
    errno.EAGAIN: "close other programs, then run it again",
    errno.EIO: "check the disk, then run it again",
}
"""What is wrong with the machine, not with what it was given, and what to do about it."""
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}
MACHINE_READS = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
"""Those of them that keep any file from being read."""
NAME_MENDS = {
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EILSEQ: "choose a name of plain letters",
    errno.EINVAL: "choose a name of plain letters",
    errno.ENOENT: "make its folder first",
    errno.ENOTDIR: "choose another name: a file is in the way",
    errno.EISDIR: "choose another name: a folder is in the way",
    errno.EEXIST: "choose another name: a file is in the way",
}
FULL = 16_384
"""Bytes free below which a failed write is laid to a full disk."""


def one_line(text: object) -> str:
    """A text on one line: control and format characters, surrogates and line separators as escapes."""
    return "".join(_escaped(char) if unicodedata.category(char) in ESCAPED else char for char in str(text))


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte of a name that is not text
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def say(*texts: str, end: str = "\n\n") -> None:
    """Print lines on standard output, with what a terminal would obey as escapes; `end` between the texts."""
    print("\n".join(one_line(line) for line in end.join(texts).split("\n")), flush=True)


def complain(text: object) -> None:
    """Print one line on standard error."""
    print(one_line(text), file=sys.stderr, flush=True)


class TresseError(Exception):
    """Something the user can mend. The message is one line and names the mend.

    The command line prints it on standard error and exits with status 2; the page shows it as it is.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


class MachineError(TresseError):
    """The machine lacks something (room on a disk, permission, memory): no input is to blame, so that work stops here
    instead of going on with the next input."""


def cannot_write(path: str | os.PathLike[str], error: BaseException) -> TresseError | None:
    """What kept `path` from being written, as one line that names the mend; None where it was not the system.

    A MachineError where the machine lacks something. Several libraries do not say that a disk is full: then it is looked at.
    """
    number = _errno(error)
    if number is None and _is_full(Path(path)):
        number = errno.ENOSPC
    if number in MENDS:
        return MachineError(f"cannot write {os.fspath(path)} ({os.strerror(number)}): {MENDS[number]}")
    if number is not None:
        mend = NAME_MENDS.get(number, "choose another place")
        return TresseError(f"cannot write {os.fspath(path)} ({os.strerror(number)}): {mend}")
    return None


def cannot_read(path: str | os.PathLike[str], error: OSError) -> TresseError:
    """What keeps `path` from being read, as one line that names the mend. A MachineError where no file could be read."""
    name, number = os.fspath(path), error.errno or 0
    if number in MACHINE_READS:
        return MachineError(f"cannot read {name} ({os.strerror(number)}): {MENDS[number]}")
    if number in (errno.ENOENT, errno.ENOTDIR):
        return TresseError(f"no such file: {name}")
    if number == errno.EISDIR:
        return TresseError(f"{name} is a folder: give a file")
    mend = "check its permissions" if number in (errno.EACCES, errno.EPERM) else "give another file"
    return TresseError(f"cannot read {name} ({error.strerror or error}): {mend}")


def machine_fault(error: BaseException) -> TresseError | None:
    """The line for an error that nobody along the way expected, where it is the machine's; None where it is not."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else _errno(error)
    if number in MENDS or (isinstance(error, OSError) and number is not None):
        name = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
        mend = MENDS.get(number, "make room or check the permissions, then run it again")
        return MachineError(f"{os.strerror(number)}{name}: {mend}")
    return None


def _errno(error: BaseException | None) -> int | None:
    """The number of the system's error in or behind an exception. What lies behind another exception counts only where it
    says that a disk failed: the rest may have been dealt with."""
    first = error
    while error is not None:
        number = error.errno if isinstance(error, OSError) else _written(str(error))
        if number is not None and (error is first or number in DISK):
            return number
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _written(text: str) -> int | None:
    """The number of the error that a library not of Python has put in words."""
    return next((number for number in MENDS if os.strerror(number) in text), None)


def _is_full(path: Path) -> bool:
    """Whether there is no room where a file was being written."""
    folder = next((folder for folder in (path, *path.parents) if folder.is_dir()), None)
    try:
        return folder is not None and shutil.disk_usage(folder).free < FULL
    except OSError:
        return False


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around code that writes `path`. Raises MachineError for a full disk, a read-only folder and the like, whichever
    library noticed it, and TresseError for a name that cannot be written."""
    try:
        yield
    except TresseError:
        raise
    except Exception as error:
        named = error.filename if isinstance(error, OSError) else None
        ours = not isinstance(named, str) or Path(named).parent in (Path(path).parent, *Path(path).parents)
        if not ours or (fault := cannot_write(path, error)) is None:
            raise  # a file that was being read meanwhile
        raise fault from error
