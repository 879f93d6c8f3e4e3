"""Downloads HAM10000 and the official ISIC 2018 Task 3 sets from public addresses. No account is needed.

HAM10000 comes from Harvard Dataverse (doi:10.7910/DVN/DBW86T), which publishes an MD5 for each file, or from ISIC's
challenge bucket, which publishes none. For the latter only the length and the CRC-32 in the zip file are checked.
Dataverse has "ingested" the metadata: the plain address serves a tab-separated re-export. The MD5 in the listing is
that of the uploaded file, which `?format=original` serves (Dataverse guide "Data Access API"; issue
IQSS/dataverse#7275). Since August 2026 Harvard's firewall answers 403 to the default User-Agent of python-requests,
and sometimes 202 with an empty body to clients other than browsers (IQSS/dataverse.harvard.edu#479). For this reason
the module sends `HEADERS`, offers a second source, and accepts archives that the user has put into the target folder.

An incomplete download is never used. pooch downloads to a temporary file, archives are unpacked in `.download/` inside
the target folder, and both are moved into place when they are complete. A second run continues with the first missing
file. An interrupted file is downloaded from its start, because pooch does not support ranged requests.
"""

import errno
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pooch
import requests

from dermrw import __version__
from dermrw.errors import UserError

DATAVERSE_URL = "https://dataverse.harvard.edu"
ISIC_URL = "https://isic-challenge-data.s3.amazonaws.com/2018"
DOI = "doi:10.7910/DVN/DBW86T"
DATAVERSE_PAGE = f"https://dataverse.harvard.edu/dataset.xhtml?persistentId={DOI}"
ISIC_PAGE = "https://challenge.isic-archive.com/data/#2018"
SOURCES = ("dataverse", "isic")
LICENCE = (
    "CC BY-NC 4.0, ViDIR Group, Medical University of Vienna; Tschandl, Rosendahl, Kittler, Sci. Data 5:180161 (2018)"
)
HEADERS = {"User-Agent": f"dermrw/{__version__}"}
TIMEOUT = 60  # seconds without data after which an attempt has failed
RETRIES = 3  # after the first attempt; pooch waits 1, 2, 3 s between them
STAGING = ".download"
LISTING = "dataverse_listing.json"


@dataclass(frozen=True)
class Item:
    """A published file: its local name, its folder and its source."""

    name: str
    folder: Path
    page: str  # web page for a download by hand
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
        return [Item(name, root, DATAVERSE_PAGE, "take `--source isic`") for name in names]
    parts = ("Input.zip", "GroundTruth.zip", "LesionGroupings.csv")
    return [
        Item(name, root, ISIC_PAGE, "take `--source dataverse`", f"{isic_url}/{name}")
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


def download(
    root: Path | str = "data/ham10000",
    *,
    source: str = "dataverse",
    official: bool = True,
    progress: bool = True,
    dataverse_url: str = DATAVERSE_URL,
    isic_url: str = ISIC_URL,
) -> Path:
    """Downloads HAM10000 into `root` and, if `official`, the official sets into its sibling folders; returns `root`.

    The download is not interactive and can be repeated at any time. Complete items are skipped without a request.
    """
    root = Path(root)
    if source not in SOURCES:
        raise UserError(f"--source {source} is unknown; take one of {', '.join(SOURCES)}.")
    ham = ham10000_items(root, source, isic_url)
    others = [item for s in SOURCES if s != source for item in ham10000_items(root, s, isic_url)]
    with _disk_errors(root):
        if all(item.is_there for item in others):  # the same images, so a second copy is not needed
            print(f"{root} already holds HAM10000 from the other source.")
            ham, others = [], []
        wanted = ham + (official_items(root.parent, isic_url) if official else [])
        missing = [item for item in wanted if not item.is_there]
        if missing:
            if source == "dataverse" and any(not i.url and not i.by_hand for i in missing):
                missing = _with_addresses(missing, root, dataverse_url)
            missing = [_with_size(item) for item in missing]
            print(announcement(missing))
            _check_disk(root, missing)
        for item in missing:
            _get(item, progress)
        beside = f", the official sets beside it in {root.parent}" if official else ""
        print(f"HAM10000 is in {root}{beside}.")
        spare = [item.target.name for item in others if item.is_there]
    if spare:
        print(f"Note: {root} also holds {', '.join(spare)} of the other source; not needed, may be deleted.")
    print("Next: make train-ham")
    return root


def announcement(items: list[Item]) -> str:
    """Returns a text with the files to download, their source, size, integrity check and licence."""
    lines = ["To fetch:"]
    for item in items:
        size = "by hand, there" if item.by_hand else gigabytes(item.size)
        lines.append(f"  {size:>14}  {item.folder / item.name}" + (f"  from {item.url}" * (not item.by_hand)))
    fetched = [item for item in items if not item.by_hand]
    unknown = sum(item.size is None for item in fetched)
    total = gigabytes(sum(item.size or 0 for item in fetched))
    lines.append(f"Total: {total}" + (f" and {unknown} file(s) of unknown size" if unknown else "") + ".")
    if any(item.md5 for item in fetched):
        lines.append("Dataverse publishes an MD5 for each of its files; it is checked.")
    if any(item.md5 is None for item in fetched):
        lines.append("ISIC publishes no checksums; only lengths and the archives' own CRC-32 are checked.")
    return "\n".join([*lines, f"Licence and citation: {LICENCE}."])


def gigabytes(size: int | None) -> str:
    """Returns a size in bytes as text, in decimal units as on the servers' pages."""
    if size is None:
        return "size unknown"
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def _with_addresses(items: list[Item], root: Path, base: str) -> list[Item]:
    """Returns the items with address, size and MD5 from Dataverse's listing; items of other sources are unchanged."""
    listing_url = f"{base}/api/datasets/:persistentId/?persistentId={DOI}"
    listing = Item(LISTING, root, DATAVERSE_PAGE, "take `--source isic`", listing_url)
    path = _fetch(listing, progress=False)
    try:
        answer = json.loads(path.read_text(encoding="utf-8"))
        files = [entry["dataFile"] for entry in answer["data"]["latestVersion"]["files"]]
        return [item if item.url or item.by_hand else _from_listing(item, files, base) for item in items]
    except (ValueError, KeyError, TypeError) as error:
        why = "the answer is not Dataverse's listing (its firewall may have asked for a browser)"
        raise UserError(_sentence(listing, why)) from error
    finally:
        path.unlink()


def _from_listing(item: Item, files: list[dict[str, Any]], base: str) -> Item:
    """Returns the item with the listing's data. Spellings vary by version (`part1`, `part_1`; `.tab`, none, `.csv`)."""

    def key(name: str) -> str:
        return Path(name).stem.replace("_", "").casefold()

    for file in files:
        if key(file["filename"]) != key(item.name):
            continue
        ingested = bool(file.get("originalFileFormat") or file.get("tabularData"))
        url = f"{base}/api/access/datafile/{file['id']}" + ("?format=original" if ingested else "")
        size = file.get("originalFileSize") if ingested else file.get("filesize")
        return replace(item, url=url, size=size, md5=file["md5"])
    raise UserError(_sentence(item, f"{base} does not list it under {DOI}"))


def _with_size(item: Item) -> Item:
    """Returns the item with its length from a HEAD request, or None as its length if the server does not state it.

    A 404 is an error, so that a missing file is reported before gigabytes of others are downloaded. All other failures
    are left to the download, which is retried.
    """
    if item.by_hand or item.size is not None or item.md5:
        return item
    try:
        answer = requests.head(item.url, headers=HEADERS, timeout=TIMEOUT, allow_redirects=True)
    except requests.RequestException:
        return item
    if answer.status_code == 404:
        raise UserError(_sentence(item, "the server answered 404 Not Found"))
    length = answer.headers.get("Content-Length", "")
    return replace(item, size=int(length)) if answer.ok and length.isdigit() else item


def _check_disk(root: Path, items: list[Item]) -> None:
    """Raises a UserError if the free disk space is too small for the download.

    JPEG files are not compressed further, so an archive unpacks to about its own size. Each archive is deleted as soon
    as it is unpacked, so at most one copy of all files and a second copy of the largest archive exist.
    """
    sizes = [item.by_hand.stat().st_size if item.by_hand else item.size or 0 for item in items]
    need = sum(sizes) + max((s for s, i in zip(sizes, items, strict=True) if i.is_zip), default=0)
    place = next(p for p in (root.absolute(), *root.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if need > free:
        raise UserError(
            f"{root} has {gigabytes(free)} free, and the download needs about {gigabytes(need)} to unpack;"
            " free some space or name a folder on another disk."
        )


def _get(item: Item, progress: bool) -> None:
    """Downloads an item and moves it into place. A downloaded archive is deleted afterwards, the user's own is kept."""
    by_hand = item.by_hand
    path = by_hand or _fetch(item, progress)
    try:
        if item.is_zip:
            print(f"Unpacking {path.name} into {item.target}")
            _unpack(path, item.target, item.folder / STAGING / "unpacked")
        elif b"lesion_id" not in _first_line(path):
            raise ValueError("its first line names no lesion_id column")
        else:
            path.replace(item.target)
    except ValueError as error:
        if by_hand:
            raise UserError(f"{path} cannot be used: {error}; fetch it anew from {item.page}.") from error
        path.unlink()  # otherwise the next run would use it, as no checksum detects the damage
        raise UserError(_sentence(item, str(error))) from error
    if item.is_zip and not by_hand:
        path.unlink()
    shutil.rmtree(item.folder / STAGING, ignore_errors=True)


def _first_line(path: Path) -> bytes:
    with path.open("rb") as opened:
        return opened.readline(10_000)  # bytes, as an HTML page can be one long line


def _fetch(item: Item, progress: bool) -> Path:
    """Returns the item's checked file in the staging folder. A complete file of an earlier run is used again."""
    staging = item.folder / STAGING
    for stale in staging.glob("tmp*"):  # temporary files of pooch, left by a killed run
        stale.unlink()
    if item.name == LISTING:
        (staging / item.name).unlink(missing_ok=True)
    fetcher = pooch.create(
        staging,
        base_url="",
        registry={item.name: f"md5:{item.md5}" if item.md5 else None},
        urls={item.name: item.url},
        retry_if_failed=RETRIES,
    )
    get = pooch.HTTPDownloader(progressbar=progress, chunk_size=1 << 16, timeout=TIMEOUT, headers=HEADERS)
    try:
        return Path(fetcher.fetch(item.name, downloader=get))
    except requests.RequestException as error:
        raise UserError(_sentence(item, _network_trouble(error))) from error
    except ValueError as error:  # pooch's error for a wrong hash
        why = f"what arrived does not have the published MD5 {item.md5}"
        raise UserError(_sentence(item, why)) from error


def _unpack(archive: Path, target: Path, scratch: Path) -> None:
    """Unpacks an archive into `scratch` and then moves it to `target`.

    Dataverse's archives contain JPEG files, ISIC's a folder with the archive's name. Both become one folder with that
    name. Resource forks (`__MACOSX/`) are left out, because their `._*.jpg` files would be mistaken for images.

    Raises:
        ValueError: the archive is damaged or has other contents; the message is the reason.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if not m.filename.startswith("__MACOSX/")]
            paths = [PurePosixPath(m.filename.replace("\\", "/")) for m in members]
            for path in paths:
                if path.is_absolute() or ".." in path.parts or ":" in str(path):
                    raise ValueError(f"the archive names {path}, outside its own folder")
            if all(m.is_dir() for m in members):
                raise ValueError("the archive holds no files")
            shutil.rmtree(scratch, ignore_errors=True)
            opened.extractall(scratch, members)
        nested = [path.name for path in scratch.iterdir()] == [target.name]
        (scratch / target.name if nested else scratch).replace(target)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
        raise ValueError(f"the archive is damaged ({error})") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # important if the disk is full


def _network_trouble(error: requests.RequestException) -> str:
    """Returns the cause in a few words. Call it before handling OSError, the base class of requests' exceptions."""
    if error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return f"the server was silent for {TIMEOUT} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off before the end"
    return "the server could not be reached or fell silent"


def _sentence(item: Item, why: str) -> str:
    """Returns the sentence of a UserError: the file, the cause and the remedy."""
    source = f" from {item.url}" if item.url else ""
    hand = "" if item.name == LISTING else f" {item.name}"
    return (
        f"{item.name} could not be had{source}: {why}; run the same command again (complete files are kept),"
        f" {item.instead}, or fetch{hand or ' the files'} by hand from {item.page} into {item.folder}."
    )


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    """Turns errors of the file system into UserErrors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = f"The disk of {root} is full; free some space and run the same command again."
        else:
            where, cause = error.filename or root, error.strerror or error
            why = f"{where} cannot be written ({cause}); name another folder."
        raise UserError(why) from error
