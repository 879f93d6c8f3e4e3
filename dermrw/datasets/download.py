"""Downloads HAM10000 and the official ISIC 2018 Task 3 sets from public addresses. No account is needed.

HAM10000 comes from Harvard Dataverse (doi:10.7910/DVN/DBW86T), which publishes an MD5 for each file, or from ISIC's
challenge bucket, which publishes none. For the latter only the length and the CRC-32 in the zip file are checked.
Dataverse has "ingested" the metadata: the plain address serves a tab-separated re-export. The MD5 in the listing is
that of the uploaded file, which `?format=original` serves (Dataverse guide "Data Access API"; issue
IQSS/dataverse#7275). Since August 2026 Harvard's firewall answers 403 to the default User-Agent of python-requests,
and sometimes 202 with an empty body to clients other than browsers (IQSS/dataverse.harvard.edu#479). For this reason
the module sends `HEADERS`, offers a second source, and accepts archives that the user has put into the target folder.

A second run continues with the first missing file. `download_items` lists the files, `download_fetch` downloads one.
"""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import requests

from dermrw.datasets.download_fetch import HEADERS, TIMEOUT, fetch, get
from dermrw.datasets.download_items import (
    DATAVERSE_PAGE,
    DATAVERSE_URL,
    DOI,
    ISIC_URL,
    LICENCE,
    LISTING,
    SOURCES,
    Item,
    ham10000_items,
    official_items,
    sentence,
)
from dermrw.errors import UserError


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
        raise UserError(f"--source {source} is unknown; use one of {', '.join(SOURCES)}.")
    ham = ham10000_items(root, source, isic_url)
    others = [item for s in SOURCES if s != source for item in ham10000_items(root, s, isic_url)]
    with _disk_errors(root):
        if all(item.is_there for item in others):  # the same images, so a second copy is not needed
            print(f"{root} already contains HAM10000 from the other source.")
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
            get(item, progress)
        others_in = f", and the official sets are in folders of {root.parent}" if official else ""
        print(f"HAM10000 is in {root}{others_in}.")
        spare = [item.target.name for item in others if item.is_there]
    if spare:
        print(f"Note: {root} also contains {', '.join(spare)} from the other source, which you can delete.")
    print("Next: make train-ham")
    return root


def announcement(items: list[Item]) -> str:
    """Returns a text with the files to download, their source, size, integrity check and licence."""
    lines = ["Files to download:"]
    for item in items:
        size = "already there" if item.by_hand else gigabytes(item.size)
        lines.append(f"  {size:>14}  {item.folder / item.name}" + (f"  from {item.url}" * (not item.by_hand)))
    fetched = [item for item in items if not item.by_hand]
    unknown = sum(item.size is None for item in fetched)
    total = gigabytes(sum(item.size or 0 for item in fetched))
    lines.append(f"Total: {total}" + (f" and {unknown} files of unknown size" if unknown else "") + ".")
    if any(item.md5 for item in fetched):
        lines.append("The MD5 that Dataverse publishes for each of its files is checked.")
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
    path = fetch(listing, progress=False)
    try:
        answer = json.loads(path.read_text(encoding="utf-8"))
        files = [entry["dataFile"] for entry in answer["data"]["latestVersion"]["files"]]
        return [item if item.url or item.by_hand else _from_listing(item, files, base) for item in items]
    except (ValueError, KeyError, TypeError) as error:
        why = "the answer is not Dataverse's list of files (its firewall may require a browser)"
        raise UserError(sentence(listing, why)) from error
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
    raise UserError(sentence(item, f"{base} does not list it under {DOI}"))


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
        raise UserError(sentence(item, "the server answered 404 Not Found"))
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
            f"{root} has {gigabytes(free)} free, but download and unpacking need about {gigabytes(need)}:"
            " free some space, or choose a folder on another disk."
        )


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    """Turns errors of the file system into UserErrors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = f"the disk of {root} is full: free some space and run the same command again"
        else:
            where, cause = error.filename or root, error.strerror or error
            why = f"{where} can't be written ({cause}): choose another folder"
        raise UserError(why) from error
