"""`python -m kemem`: the command line, where its script is not on the path."""

import sys

from kemem.cli import main

sys.exit(main())
