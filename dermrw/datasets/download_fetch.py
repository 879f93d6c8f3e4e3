"""Downloads and unpacks one published file. An incomplete download is never used.

pooch downloads to a temporary file, archives are unpacked in `.download/` inside the target folder, and both are moved
into place when they are complete. An interrupted file is downloaded from its start, because pooch does not support
ranged requests.
"""

import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import pooch
import requests

from dermrw import __version__
from dermrw.datasets.download_items import LISTING, Item, sentence
from dermrw.errors import UserError

HEADERS = {"User-Agent": f"dermrw/{__version__}"}
TIMEOUT = 60  # seconds without data after which an attempt has failed
RETRIES = 3  # after the first attempt; pooch waits 1, 2, 3 s between them
STAGING = ".download"


def get(item: Item, progress: bool) -> None:
    """Downloads an item and moves it into place. A downloaded archive is deleted afterwards, the user's own is kept."""
    by_hand = item.by_hand
    path = by_hand or fetch(item, progress)
    try:
        if item.is_zip:
            print(f"Unpacking {path.name} into {item.target}")
            _unpack(path, item.target, item.folder / STAGING / "unpacked")
        elif b"lesion_id" not in _first_line(path):
            raise ValueError("its first line has no column lesion_id")
        else:
            path.replace(item.target)
    except ValueError as error:
        if by_hand:
            raise UserError(f"{path} can't be used: {error}; download it again from {item.page}.") from error
        path.unlink()  # otherwise the next run would use it, as no checksum detects the damage
        raise UserError(sentence(item, str(error))) from error
    if item.is_zip and not by_hand:
        path.unlink()
    shutil.rmtree(item.folder / STAGING, ignore_errors=True)


def _first_line(path: Path) -> bytes:
    with path.open("rb") as opened:
        return opened.readline(10_000)  # bytes, as an HTML page can be one long line


def fetch(item: Item, progress: bool) -> Path:
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
        raise UserError(sentence(item, _network_trouble(error))) from error
    except ValueError as error:  # pooch's error for a wrong hash
        why = f"the downloaded file does not have the published MD5 {item.md5}"
        raise UserError(sentence(item, why)) from error


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
                    raise ValueError(f"the archive contains the path {path}, outside its own folder")
            if all(m.is_dir() for m in members):
                raise ValueError("the archive contains no files")
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
        return f"the server sent nothing for {TIMEOUT} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke before the end of the file"
    return "the server can't be reached or stopped answering"
