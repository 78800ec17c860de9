"""Which files of a source are images, and what is said of the rest.

A file is taken for an image by its name, as torchvision does, so that nothing is opened; a file of any other name is
looked into. Whatever is left out is counted by reason, printed, and noted in x.json.
"""

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
NO_CLASS = "in no class folder"
FURTHER = "further image of a sample"
WITHOUT_IMAGE = "in a sample without an image"


class LeftOut:
    """Files that are left out: of each reason their number and the first one's name."""

    def __init__(self):
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def add(self, reason: str, name: str, count: int = 1):
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.first.setdefault(reason, name)

    def merge(self, other: "LeftOut"):
        for reason, count in other.counts.items():
            self.add(reason, other.first[reason], count)

    def __str__(self):
        return ", ".join(
            f"{count:,} {reason} ({one_line(self.first[reason])})" for reason, count in self.counts.items()
        )


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
