"""JPEG files through torch's DataLoader: what three of the baselines share."""

from torch.utils.data import DataLoader, Dataset


class Files(Dataset):
    """The files over and over, `length` images in all; an item is `transform(read(file))` and a label."""

    def __init__(self, files, read, transform=None):
        self.files, self.read, self.transform, self.length = [str(file) for file in files], read, transform, 0

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.transform(self.read(self.files[index % len(self.files)])), 0


def epochs_of(dataset, *, batch, workers):
    """The `epoch` function of a shuffling DataLoader whose workers stay."""
    dataset.length = batch
    loader = DataLoader(
        dataset, batch_size=batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )
    return restarting(loader, dataset, batch)


def restarting(loader, dataset, batch):
    """The `epoch` function of a DataLoader over `dataset`."""

    def epoch(batches):
        dataset.length = batches * batch
        for images, _ in loader:
            yield images

    return epoch
