"""``python -m kdist``: the same program as ``kdist``."""

import sys

from kdist.cli import main

sys.exit(main())
