#!/usr/bin/env python3
from d2kd.cli.benchmark import main

if __name__ == "__main__":
    raise SystemExit(main())
