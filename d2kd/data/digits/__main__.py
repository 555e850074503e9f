"""``python -m d2kd.data.digits``: make the digits dataset, or verify the one that is there."""

import argparse
import logging

from d2kd.data.digits import prepare_digits


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m d2kd.data.digits",
        description="Make the digits dataset, or verify the one that is there.",
    )
    parser.add_argument("--root", help="folder (default: $DETECTRON2_DATASETS/digits, or datasets/digits)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(prepare_digits(args.root))


if __name__ == "__main__":
    main()
