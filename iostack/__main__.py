"""``python -m iostack``: the same as the command ``iostack``."""

import sys

from iostack.cli import main

sys.exit(main())
