"""`python -m lvmae` is the `lvmae` command."""

import sys

from lvmae.cli import main

if __name__ == "__main__":
    sys.exit(main())
