#!/usr/bin/env python3
from d2kd.cli.train import main

if __name__ == "__main__":
    raise SystemExit(main())
