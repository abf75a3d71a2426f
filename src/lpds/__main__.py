"""``python -m lpds``."""

import sys

from lpds.cli import main

sys.exit(main())
