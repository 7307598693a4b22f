"""``python -m speedup.cli``."""

import sys

from speedup.cli import main

sys.exit(main())
