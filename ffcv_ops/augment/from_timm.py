"""What a policy of timm's declares beside its kernel."""

from ffcv_ops.augment import operations


def of_timm(row) -> dict:
    """Its `words` and its `reference`. row: (options, height, width, key) -> what is done to the sample, [(operation,
    argument)]."""

    def reference(image, options, key):
        from ffcv_ops.augment import pillow

        return pillow.by_timm(image, row(options, image.height, image.width, key), options.interpolation)

    return {"words": lambda *sample: operations.words(row(*sample)), "reference": reference}
