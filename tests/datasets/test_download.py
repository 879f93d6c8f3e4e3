"""The download against a local server that stands for Dataverse and for ISIC's bucket."""

import errno
import hashlib
import io
import json
import shutil
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pooch
import pytest
import requests

from dermrw.datasets.download import download, gigabytes
from dermrw.datasets.download_fetch import STAGING
from dermrw.datasets.download_items import DOI
from dermrw.errors import UserError

LISTING = "/api/datasets/:persistentId/"
METADATA = b"lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\nHAM_1,ISIC_1,nv,histo,50,male,back,x\n"
DATAVERSE = ("HAM10000_images_part_1.zip", "HAM10000_images_part_2.zip", "HAM10000_metadata.csv")


def zipped(*names: str, content: bytes = b"jpeg " * 50) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return buffer.getvalue()


class Server:
    """Files by path, and what goes wrong: a list of "500", "cut" or "empty" per path, used up in turn."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.trouble: dict[str, list[str]] = {}
        self.gets: Counter[str] = Counter()
        self.queries: dict[str, str] = {}
        self.agents: set[str] = set()
        self.listed: list[dict[str, object]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path, query = urlsplit(self.path)[2:4]
                server.agents.add(self.headers["User-Agent"])
                if self.command == "GET":
                    server.gets[path] += 1
                    server.queries[path] = query
                trouble = server.trouble.get(path, []) if self.command == "GET" else []
                what = trouble.pop(0) if trouble else ""
                body = server.files.get(path)
                if what == "500" or body is None:
                    self.send_error(500 if what else 404)
                    return
                if what == "empty":  # a firewall's challenge to browsers
                    body = b""
                self.send_response(202 if what == "empty" else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body[: len(body) // 2] if what == "cut" else body)

            do_HEAD = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"

    def list_file(self, number: int, name: str, body: bytes, **extra: object) -> None:
        """Put a file on Dataverse; a later call with the same number replaces it."""
        self.files[f"/api/access/datafile/{number}"] = body
        entry = {"id": number, "filename": name, "filesize": len(body), "md5": hashlib.md5(body).hexdigest()}
        self.listed = [e for e in self.listed if e["id"] != number] + [entry | extra]
        listing = {"data": {"latestVersion": {"files": [{"dataFile": e} for e in self.listed]}}}
        self.files[LISTING] = json.dumps(listing).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(pooch.core, "time", SimpleNamespace(sleep=lambda seconds: None))
    server = Server()
    server.list_file(9, "HAM10000_segmentations_lesion_tschandl.zip", b"not wanted")
    server.list_file(1, "HAM10000_images_part_1.zip", zipped("ISIC_1.jpg", "__MACOSX/._ISIC_1.jpg"))
    server.list_file(2, "HAM10000_images_part_2.zip", zipped("ISIC_2.jpg", "ISIC_3.jpg"))
    ingested = {"originalFileFormat": "text/csv", "originalFileSize": len(METADATA), "filesize": 1}
    server.list_file(3, "HAM10000_metadata.tab", METADATA, **ingested)
    for part in ("Training", "Validation", "Test"):
        for kind, name in (
            ("Input", "ISIC_9.jpg"),
            ("GroundTruth", f"ISIC2018_Task3_{part}_GroundTruth.csv"),
        ):
            stem = f"ISIC2018_Task3_{part}_{kind}"
            server.files[f"/2018/{stem}.zip"] = zipped(f"{stem}/", f"{stem}/LICENSE.txt", f"{stem}/{name}")
    groupings = b"image,lesion_id,diagnosis confirm type\nISIC_9,HAM_9,histopathology\n"
    server.files["/2018/ISIC2018_Task3_Training_LesionGroupings.csv"] = groupings
    thread = threading.Thread(target=server.httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.httpd.shutdown()
    thread.join()
    server.httpd.server_close()


def fetch(server: Server, root: Path, **options: Any) -> Path:
    defaults: dict[str, Any] = {"dataverse_url": server.url, "isic_url": f"{server.url}/2018"}
    defaults |= {"official": False, "progress": False}
    return download(root, **(defaults | options))


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


HAM_TREE = [
    "HAM10000_images_part_1/ISIC_1.jpg",
    "HAM10000_images_part_2/ISIC_2.jpg",
    "HAM10000_images_part_2/ISIC_3.jpg",
    "HAM10000_metadata.csv",
]


def test_the_whole_way(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data" / "ham10000"
    assert fetch(server, root, official=True, progress=True) == root
    assert tree(root) == HAM_TREE
    assert (root / "HAM10000_metadata.csv").read_bytes() == METADATA
    assert tree(root.parent / "isic2018_task3_test") == [
        "ISIC2018_Task3_Test_GroundTruth/ISIC2018_Task3_Test_GroundTruth.csv",
        "ISIC2018_Task3_Test_GroundTruth/LICENSE.txt",
        "ISIC2018_Task3_Test_Input/ISIC_9.jpg",
        "ISIC2018_Task3_Test_Input/LICENSE.txt",
    ]
    assert len(tree(root.parent / "isic2018_task3_validation")) == 4
    assert not list(tmp_path.rglob(STAGING)) and not list(tmp_path.rglob("*.zip"))
    out = capsys.readouterr().out
    assert "CC BY-NC 4.0" in out and "Sci. Data 5:180161" in out and f"{server.url}/2018/ISIC2018" in out
    assert "Total: 0.0" in out and "size unknown" not in out and "MD5" in out and "no checksums" in out
    assert out.index("CC BY-NC") < out.index("Unpacking") < out.index("make train-ham")
    assert server.queries["/api/access/datafile/3"] == "format=original"
    assert server.queries["/api/access/datafile/1"] == "" and server.queries[LISTING] == f"persistentId={DOI}"
    assert not server.gets["/api/access/datafile/9"]
    assert all(agent.startswith("dermrw/") for agent in server.agents)  # Harvard refuses python-requests


def test_a_second_run_asks_the_network_nothing(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path / "ham", official=True)
    before = server.gets.copy()
    fetch(server, tmp_path / "ham", official=True)
    assert server.gets == before


def test_isic_as_source(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.files.pop(LISTING)
    fetch(server, tmp_path, source="isic")
    assert tree(tmp_path) == [
        "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv",
        "ISIC2018_Task3_Training_GroundTruth/LICENSE.txt",
        "ISIC2018_Task3_Training_Input/ISIC_9.jpg",
        "ISIC2018_Task3_Training_Input/LICENSE.txt",
        "ISIC2018_Task3_Training_LesionGroupings.csv",
    ]
    fetch(server, tmp_path)  # the same images from the other source are not fetched a second time
    assert "already contains HAM10000 from the other source" in capsys.readouterr().out


def test_a_change_of_source_names_what_is_left_over(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/api/access/datafile/2"] = b"x"
    with pytest.raises(UserError):
        fetch(server, tmp_path)
    fetch(server, tmp_path, source="isic")
    assert "also contains HAM10000_images_part_1 from the other source" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "trouble"),
    [(LISTING, "500"), (LISTING, "cut"), *(("/api/access/datafile/1", t) for t in ("500", "cut", "empty"))],
)
def test_passing_trouble_is_tried_again(server: Server, tmp_path: Path, path: str, trouble: str) -> None:
    server.trouble[path] = [trouble, trouble]
    fetch(server, tmp_path)
    assert tree(tmp_path) == HAM_TREE and server.gets[path] == 3


def test_an_interrupted_run_goes_on(server: Server, tmp_path: Path) -> None:
    server.trouble["/api/access/datafile/2"] = ["cut"] * 4
    with pytest.raises(UserError, match=r"part_2\.zip .*/datafile/2: the connection broke.*run the same"):
        fetch(server, tmp_path)
    assert tree(tmp_path) == HAM_TREE[:1]  # no half file, not even in the staging folder
    (tmp_path / STAGING / "tmpkilled").write_bytes(b"what a killed run leaves")
    fetch(server, tmp_path)
    assert tree(tmp_path) == HAM_TREE
    assert server.gets["/api/access/datafile/1"] == 1 and server.gets["/api/access/datafile/2"] == 5


def test_an_interrupt_while_unpacking_costs_no_second_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(archive: zipfile.ZipFile, folder: Path, members: object) -> None:
        archive.extract("ISIC_1.jpg", folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(zipfile.ZipFile, "extractall", interrupt)
        fetch(server, tmp_path)
    assert tree(tmp_path) == [f"{STAGING}/HAM10000_images_part_1.zip"]
    fetch(server, tmp_path)
    assert tree(tmp_path) == HAM_TREE and server.gets["/api/access/datafile/1"] == 1


def test_a_wrong_md5(server: Server, tmp_path: Path) -> None:
    server.files["/api/access/datafile/1"] = zipped("ISIC_1.jpg", content=b"other")
    message = r"part_1\.zip .*/datafile/1: .*published MD5 [0-9a-f]{32}; .*`--source isic`.*in a browser from https"
    with pytest.raises(UserError, match=message):
        fetch(server, tmp_path)
    assert tree(tmp_path) == [] and server.gets["/api/access/datafile/1"] == 4


def test_a_missing_file_of_dataverse(server: Server, tmp_path: Path) -> None:
    del server.files["/api/access/datafile/2"]
    with pytest.raises(UserError, match=r"part_2\.zip .*/datafile/2: the server answered 404 Not Found;"):
        fetch(server, tmp_path)
    server.listed = [entry for entry in server.listed if entry["id"] != 2]
    server.list_file(9, "other.zip", b"")
    with pytest.raises(UserError, match=r"part_2\.zip can't be downloaded: .* does not list it"):
        fetch(server, tmp_path)


def test_a_missing_file_of_isic_is_said_before_anything_is_fetched(server: Server, tmp_path: Path) -> None:
    del server.files["/2018/ISIC2018_Task3_Test_Input.zip"]
    with pytest.raises(UserError, match=r"Test_Input\.zip: the server answered 404 .*`--no-official`"):
        fetch(server, tmp_path / "ham", official=True)
    assert tree(tmp_path) == [] and set(server.gets) == {LISTING}


def test_the_firewalls_empty_answer(server: Server, tmp_path: Path) -> None:
    server.trouble[LISTING] = ["empty"]
    with pytest.raises(UserError, match=r"firewall may require a browser\); .*`--source isic`"):
        fetch(server, tmp_path)
    fetch(server, tmp_path)  # the bad listing is not kept
    assert tree(tmp_path) == HAM_TREE


@pytest.mark.parametrize("source", ["dataverse", "isic"])
def test_nobody_listens(server: Server, tmp_path: Path, source: str) -> None:
    urls = {"dataverse_url": "http://127.0.0.1:9", "isic_url": "http://127.0.0.1:9/2018"}
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/.* can't be reached.*--source"):
        fetch(server, tmp_path, source=source, **urls)


def test_a_silent_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*args: object, **kwargs: object) -> None:
        raise requests.ReadTimeout

    monkeypatch.setattr(requests, "get", silent)
    with pytest.raises(UserError, match="sent nothing for 60 s"):
        fetch(server, tmp_path)


@pytest.mark.parametrize("name", ["../evil.jpg", "/evil.jpg", "a/../../evil.jpg", "..\\evil.jpg", "C:/evil.jpg"])
def test_an_archive_that_reaches_out_is_refused(server: Server, tmp_path: Path, name: str) -> None:
    server.list_file(1, "HAM10000_images_part_1.zip", zipped("ISIC_1.jpg", name))
    with pytest.raises(UserError, match=r"part_1\.zip .*outside its own folder"):
        fetch(server, tmp_path / "data" / "ham")
    assert tree(tmp_path) == []


def damaged() -> bytes:
    body = bytearray(zipped("ISIC2018_Task3_Training_Input/ISIC_9.jpg"))
    body[body.index(b"jpeg ")] ^= 1
    return bytes(body)


@pytest.mark.parametrize("body", [damaged(), zipped("a.jpg")[:-30], b"<html>", b"", zipped("a/"), zipped()])
def test_a_bad_archive_without_checksum_is_fetched_anew(server: Server, tmp_path: Path, body: bytes) -> None:
    path = "/2018/ISIC2018_Task3_Training_Input.zip"
    good = server.files[path]
    server.files[path] = body
    with pytest.raises(UserError, match=r"Training_Input\.zip .*the archive (is damaged|contains no files).*; run"):
        fetch(server, tmp_path, source="isic")
    assert tree(tmp_path) == []
    server.files[path] = good
    fetch(server, tmp_path, source="isic")
    assert len(tree(tmp_path)) == 5


def test_a_page_instead_of_a_table(server: Server, tmp_path: Path) -> None:
    server.files["/2018/ISIC2018_Task3_Training_LesionGroupings.csv"] = b"<html>"
    with pytest.raises(UserError, match=r"LesionGroupings\.csv .*has no column lesion_id"):
        fetch(server, tmp_path, source="isic")
    assert not list(tmp_path.rglob("*LesionGroupings.csv"))


def test_files_put_there_by_hand_need_no_server(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(DATAVERSE[:2], 1):
        (tmp_path / name).write_bytes(server.files[f"/api/access/datafile/{number}"])
    (tmp_path / "HAM10000_metadata").write_bytes(METADATA)
    fetch(server, tmp_path)
    assert not server.gets and "already there" in capsys.readouterr().out
    assert tree(tmp_path) == sorted([*DATAVERSE[:2], "HAM10000_metadata", *HAM_TREE[:3]])  # the archives stay


def test_a_bad_archive_put_by_hand_is_named_and_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / DATAVERSE[0]).write_bytes(b"half")
    with pytest.raises(UserError, match=r"part_1\.zip can't be used: the archive is damaged .*download it again"):
        fetch(server, tmp_path)
    assert (tmp_path / DATAVERSE[0]).read_bytes() == b"half"


def test_a_disk_too_small(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(UserError, match=r"has 0\.00 MB free, but download and unpacking need about"):
        fetch(server, tmp_path)
    assert set(server.gets) == {LISTING}


@pytest.mark.parametrize("where", ["fetching", "unpacking"])
def test_a_disk_that_fills_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target: type = pooch.HTTPDownloader if where == "fetching" else zipfile.ZipFile
    monkeypatch.setattr(target, "__call__" if where == "fetching" else "extractall", full)
    with pytest.raises(UserError, match=r"the disk of .* is full: free some space"):
        fetch(server, tmp_path)
    assert tree(tmp_path) == ([] if where == "fetching" else [f"{STAGING}/HAM10000_images_part_1.zip"])


def test_a_root_that_is_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "ham").write_text("")
    with pytest.raises(UserError, match=r"ham.* can't be written .*choose another folder"):
        fetch(server, tmp_path / "ham")


def test_an_unknown_source(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--source kaggle is unknown; use one of dataverse, isic"):
        fetch(server, tmp_path, source="kaggle")


def test_sizes_as_people_read_them() -> None:
    assert [gigabytes(n) for n in (None, 690_218, 1_366_522_108)] == [
        "size unknown",
        "0.69 MB",
        "1.37 GB",
    ]
