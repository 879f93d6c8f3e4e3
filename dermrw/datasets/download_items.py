"""The published files of HAM10000 and of the official ISIC 2018 Task 3 sets: names, addresses and error messages."""

from dataclasses import dataclass
from pathlib import Path

DATAVERSE_URL = "https://dataverse.harvard.edu"
ISIC_URL = "https://isic-challenge-data.s3.amazonaws.com/2018"
DOI = "doi:10.7910/DVN/DBW86T"
DATAVERSE_PAGE = f"https://dataverse.harvard.edu/dataset.xhtml?persistentId={DOI}"
ISIC_PAGE = "https://challenge.isic-archive.com/data/#2018"
SOURCES = ("dataverse", "isic")
LICENCE = (
    "CC BY-NC 4.0, ViDIR Group, Medical University of Vienna; Tschandl, Rosendahl, Kittler, Sci. Data 5:180161 (2018)"
)
LISTING = "dataverse_listing.json"


@dataclass(frozen=True)
class Item:
    """A published file: its local name, its folder and its source."""

    name: str
    folder: Path
    page: str  # web page for a download in a browser
    instead: str  # an alternative if the download fails, for the error message
    url: str = ""
    size: int | None = None  # bytes, as stated by the server
    md5: str | None = None

    @property
    def is_zip(self) -> bool:
        """Whether the file is an archive, which is unpacked into a folder with the name of its stem."""
        return self.name.endswith(".zip")

    @property
    def target(self) -> Path:
        """The file or folder that exists when the item is complete."""
        return self.folder / (Path(self.name).stem if self.is_zip else self.name)

    @property
    def by_hand(self) -> Path | None:
        """The archive that the user has put into the folder, or None."""
        path = self.folder / self.name
        return path if self.is_zip and path.is_file() else None

    @property
    def is_there(self) -> bool:
        """Whether the item is complete, so that a run skips it."""
        if self.is_zip:
            return self.target.is_dir() and any(self.target.iterdir())
        # Downloaded by hand, Dataverse's metadata file has no extension or .tab.
        names = (self.target, self.target.with_suffix(""), self.target.with_suffix(".tab"))
        return any(path.is_file() and path.stat().st_size > 0 for path in names)


def ham10000_items(root: Path, source: str, isic_url: str = ISIC_URL) -> list[Item]:
    """Returns the files of HAM10000 for a source. `_with_addresses` adds the addresses for Dataverse later."""
    if source == "dataverse":
        names = ("HAM10000_images_part_1.zip", "HAM10000_images_part_2.zip", "HAM10000_metadata.csv")
        return [Item(name, root, DATAVERSE_PAGE, "use `--source isic`") for name in names]
    parts = ("Input.zip", "GroundTruth.zip", "LesionGroupings.csv")
    return [
        Item(name, root, ISIC_PAGE, "use `--source dataverse`", f"{isic_url}/{name}")
        for name in (f"ISIC2018_Task3_Training_{part}" for part in parts)
    ]


def official_items(parent: Path, isic_url: str = ISIC_URL) -> list[Item]:
    """Returns the official validation and test sets with their ground truth, each in its own folder."""
    return [
        Item(name, parent / f"isic2018_task3_{part.lower()}", ISIC_PAGE,
             "leave the official sets out with `--no-official`", f"{isic_url}/{name}")
        for part in ("Validation", "Test")
        for name in (f"ISIC2018_Task3_{part}_Input.zip", f"ISIC2018_Task3_{part}_GroundTruth.zip")
    ]  # fmt: skip


def sentence(item: Item, why: str) -> str:
    """Returns the sentence of a UserError: the file, the cause and the remedy."""
    source = f" from {item.url}" if item.url else ""
    file = "the files" if item.name == LISTING else item.name
    return (
        f"{item.name} can't be downloaded{source}: {why}; run the same command again (complete files are kept),"
        f" {item.instead}, or download {file} in a browser from {item.page} into {item.folder}."
    )
