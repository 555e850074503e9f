"""Prints docs/bad_inputs.md: ``python3 -m tests.bad_inputs > docs/bad_inputs.md``."""

from tests.bad_inputs.case import all_cases
from tests.bad_inputs.page import page

if __name__ == "__main__":
    print(page(all_cases()), end="")
