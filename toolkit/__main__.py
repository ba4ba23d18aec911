"""`python -m toolkit`: what the command `toolkit` runs."""

import sys

from toolkit.cli.main import main

sys.exit(main())
