"""Which files of a source are images, and what is said of the rest.

A file is taken for an image by its name, as torchvision does, so that nothing is opened; a file of any other name is
looked into. Whatever is left out is counted by reason, printed, and noted in x.json.
"""

import sys
from collections.abc import Sequence
from pathlib import PurePosixPath

from conversion import formats
from ffcv_ops.errors import one_line
from ffcv_ops.files import Irregular, open_regular

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
JUNK_FOLDERS = frozenset(  # copies, thumbnails and bins that other programs put beside the images
    [
        "__MACOSX", ".Trashes", ".fseventsd", ".Spotlight-V100",
        "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information",
        ".ipynb_checkpoints", "__pycache__", ".git", ".svn", "lost+found",
    ]
)  # fmt: skip
NO_IMAGE = "not an image by its content"


class LeftOut:
    """Files that are left out: of each reason their number and the first one's name."""

    def __init__(self):
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def add(self, reason: str, name: str, count: int = 1):
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.first.setdefault(reason, name)

    @classmethod
    def joined(cls, parts: Sequence["LeftOut"]):
        whole = cls()
        for part in parts:
            for reason, count in part.counts.items():
                whole.add(reason, part.first[reason], count)
        return whole

    def tell(self, place: str):
        """Prints what is left out of the place, if anything is."""
        said = (f"{count:,} {reason} ({one_line(self.first[reason])})" for reason, count in self.counts.items())
        if self.counts:
            print(f"{place}: left out: {', '.join(said)}", file=sys.stderr)


def has_image_name(name: str) -> bool:
    """Whether the file is taken unopened. macOS calls its metadata of x.jpg ._x.jpg."""
    return name.lower().endswith(EXTENSIONS) and not name.rpartition("/")[2].startswith("._")


def junk_folder(name: str) -> str | None:
    """The first folder of the path `name` that other programs put there, as a reason to leave it out."""
    found = next((part for part in PurePosixPath(name).parts[:-1] if part in JUNK_FOLDERS), None)
    return found and f"in {found}"


def is_image_file(path: str) -> bool:
    """Whether the regular file is an image by its content. What cannot be opened is none."""
    try:
        with open_regular(path) as file:
            return formats.is_image(file.read(formats.HEAD))
    except (OSError, Irregular):
        return False
