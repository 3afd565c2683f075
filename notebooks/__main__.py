"""Runs a notebook as a program, and keeps its last picture.

python -m notebooks first_lesson
"""

import argparse
import pathlib
import runpy
import sys

import matplotlib

FOLDER = pathlib.Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="the name of a script in notebooks/")
    parser.add_argument("--out", type=pathlib.Path, help="build/NAME.png if not given")
    options = parser.parse_args()
    out = options.out or pathlib.Path("build") / f"{options.name}.png"
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    sys.path.insert(0, str(FOLDER))
    runpy.run_path(str(FOLDER / f"{options.name}.py"), run_name="__main__")
    out.parent.mkdir(parents=True, exist_ok=True)
    plt.gcf().savefig(out, dpi=120)
    print(f"picture: {out}")


if __name__ == "__main__":
    main()
