"""`python -m mla_export` is the command `mla-export`."""

from __future__ import annotations

import sys

from mla_export.cli import main

sys.exit(main())
