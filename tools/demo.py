#!/usr/bin/env python3
import sys

from d2kd.cli.demo import main

if __name__ == "__main__":
    sys.exit(main())
