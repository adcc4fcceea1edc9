"""`python -m ksmtuned` is `ksmtuned`."""

import sys

from ksmtuned.cli import main

sys.exit(main())
