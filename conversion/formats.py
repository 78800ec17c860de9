"""The image formats that a conversion takes, recognized by content.

Pillow knows more formats, but some of its plugins start programs (EPS starts Ghostscript). Nothing in a data set is
executed, whatever a file is called, so only these plugins see a file.
"""

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")  # Pillow's names
NAMES = ", ".join(sorted(FORMATS))
HEAD = 32  # bytes that `is_image` needs

_STARTS = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"BM",
    b"GIF87a",
    b"GIF89a",
    *(b"P%d%c" % (kind, blank) for kind in range(1, 7) for blank in b" \t\n\r#"),  # PBM, PGM and PPM
    b"II*\0",  # TIFF, BigTIFF
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"\0\0\0\x0cjP  \r\n\x87\n",  # JPEG 2000, as a file and as a codestream
    b"\xff\x4f\xff\x51",
)


def is_image(head: bytes) -> bool:
    """Whether a file that begins with these bytes, HEAD or more, is of one of the FORMATS."""
    if head.startswith(_STARTS):
        return True
    return (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or (
        head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis")
    )
