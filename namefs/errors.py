"""The exit codes of ``namefs``, and the error that carries one. Standard library only, no I/O."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Why a command ended as it did.

    Scripts test these numbers: a number is never given a second meaning, and one that falls out of
    use stays here with a remark. ``sentence`` is what ``namefs --help`` says about it.
    """

    sentence: str

    def __new__(cls, number: int, sentence: str) -> ExitCode:
        code = int.__new__(cls, number)
        code._value_ = number
        code.sentence = sentence
        return code

    OK = 0, "Done."
    UNEXPECTED = 1, "An error that namefs did not foresee; the traceback is on standard error."
    USAGE = 2, "The command line makes no sense."
    CONFIGURATION = 3, "The configuration file is missing, damaged or holds something that namefs refuses."
    NOT_FOUND = 4, "There is no such guest, or the path belongs to none."
    LIBVIRT_REFUSED = 5, "libvirt refused; the message is in libvirt's own words."
    LIBVIRT_UNREACHABLE = 6, "libvirt cannot be reached."
    DAEMON_UNREACHABLE = 7, "The daemon (namefs mount) is not running, or does not answer."
    MOUNT_FAILED = 8, "Mounting or unmounting failed, or the mount point cannot be used."
    PERMISSION = 9, "The user may not do this."
    AMBIGUOUS = 10, "The name fits more than one guest."
    FILE_FAILED = 11, "A file that namefs needs cannot be read or written."
    DAEMON_RUNNING = 12, "Another daemon is running with the same runtime directory."
    NOT_NOW = 13, "The guest runs, is saved or is being changed, or a file is in the way."
    UNFINISHED = 14, "Files of a guest are half moved; `namefs adopt --recover` finishes or undoes it."


class NamefsError(Exception):
    """What went wrong, as one sentence for the user; shown without a traceback.

    ``str()`` of it is the sentence, without "namefs:" before it or a full stop after it.
    """

    def __init__(self, exit_code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def sole_error(error: BaseException) -> BaseException:
    """The one exception that a group of groups comes down to; ``error`` itself if it holds several.

    Trio since 0.25 wraps whatever leaves a nursery in a group, even a single exception.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
