"""``python -m namefs``: the command, from a tree that is not installed."""

from __future__ import annotations

import sys

from namefs.cli import main

sys.exit(main())
