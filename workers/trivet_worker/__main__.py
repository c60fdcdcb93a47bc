"""Run a zygote: `python -I -m trivet_worker --commands FD --parent FD --kind python`."""

import sys

from trivet_worker.zygote import main

if __name__ == "__main__":
    main(sys.argv[1:])
