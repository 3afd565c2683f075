"""The release notes of a tag: what the changelog says of its version.

python -m tools.release_notes v0.1.0
"""

import pathlib
import re
import sys

from fedagg import __version__

CHANGELOG = pathlib.Path(__file__).parents[1] / "CHANGELOG.md"


def notes_of(tag: str, changelog: str, version: str) -> str:
    """The section of `changelog` on the version that `tag` names.

    Raises:
        ValueError: if the tag is not that of `version`, or the changelog lacks it.
    """
    if tag != f"v{version}":
        raise ValueError(f"Expected the tag v{version} of this version, got {tag}.")
    heading = rf"^## {re.escape(version)}( [^\n]*)?\n"
    found = re.search(heading + r"(?P<notes>.*?)(?=^## |\Z)", changelog, re.M | re.S)
    if not found or not found["notes"].strip():
        raise ValueError(
            f"The changelog has nothing on {version}: rename its heading Unreleased to "
            f"## {version} (the date)."
        )
    return found["notes"].strip()


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("Expected one tag: python -m tools.release_notes v0.1.0")
    try:
        print(notes_of(sys.argv[1], CHANGELOG.read_text(), __version__))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
