#!/usr/bin/env python3
from d2kd.cli.export import main

if __name__ == "__main__":
    raise SystemExit(main())
