"""Logging of the daemon: to standard error, in the form that whoever reads it there expects."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys

_SYSLOG_PRIORITIES = (
    # sd-daemon(3), highest first: the least severe level of Python's that gets each.
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
_DEBUG_PRIORITY = 7


def setup(verbose: bool = False) -> None:
    """Sends the log to standard error; ``verbose`` adds debug messages.

    Under systemd each line gets its priority in front (``<4>``), which the journal takes off again;
    elsewhere it gets time and level. SIGUSR1 makes the process write the stacks of all its threads to
    standard error, which works even when the event loop hangs.
    """
    handler = logging.StreamHandler(sys.stderr)
    if _stderr_is_the_journal():
        handler.setFormatter(JournalFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("namefs").setLevel(logging.DEBUG if verbose else logging.INFO)
    faulthandler.register(signal.SIGUSR1, all_threads=True)


class JournalFormatter(logging.Formatter):
    """Puts the priority before every line: to the journal each line, of a traceback too, is a message."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next(
            (number for level, number in _SYSLOG_PRIORITIES if record.levelno >= level), _DEBUG_PRIORITY
        )
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines() or [""])


def _stderr_is_the_journal() -> bool:
    # Being set is not enough: a child of a service inherits the variable, and may have its standard
    # error redirected. systemd.exec(5) says to compare device and inode.
    status = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
