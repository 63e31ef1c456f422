"""`python -m server` is the `onegpu` command."""

import sys

from server.cli.main import main

sys.exit(main())
