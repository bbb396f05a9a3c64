"""`python -m banyanctl` is `banyan`."""

import sys

from banyanctl.main import main

sys.exit(main())
