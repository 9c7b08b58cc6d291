"""The file calls: where they may go, and what odd names and sizes do."""

import os
import tarfile

import pytest


@pytest.fixture
def place(gateway, request):
    folder = gateway.home / request.node.originalname
    folder.mkdir(exist_ok=True)
    return folder


def everywhere(api, path, other):
    """Every call that names a path, with this path."""
    for name in ("ls", "head", "view", "tail", "checksum", "file", "stat", "download"):
        yield api.get(f"filesystem/ops/{name}", path=path)
    yield api.delete("filesystem/ops/rm", path=path)
    yield api.post("filesystem/ops/mkdir", path=path, parent=True)
    yield api.put("filesystem/ops/chmod", path=path, mode="777")
    yield api.put("filesystem/ops/chown", path=path, owner="root")
    yield api.post("filesystem/ops/symlink", path=path, linkPath=other)
    yield api.post("filesystem/ops/symlink", path=other, linkPath=path)
    yield api.http.post(
        api.place("filesystem/ops/upload"), params={"path": path}, files={"file": ("x", b"x")}
    )
    s3 = {"transferMethod": "s3", "fileSize": 1}
    for group in ("ops", "transfer"):
        for name in ("compress", "extract"):
            yield api.post(f"filesystem/{group}/{name}", path=path, targetPath=other)
            yield api.post(f"filesystem/{group}/{name}", path=other, targetPath=path)
    for name in ("mv", "cp"):
        yield api.post(f"filesystem/transfer/{name}", path=path, targetPath=other)
        yield api.post(f"filesystem/transfer/{name}", path=other, targetPath=path)
    yield api.delete("filesystem/transfer/rm", path=path)
    for name in ("upload", "download"):
        yield api.post(f"filesystem/transfer/{name}", path=path, transferDirectives=s3)


@pytest.mark.parametrize("kind", ["plain", "dots", "link", "relative", "sibling"])
def test_no_call_leaves_the_file_systems(gateway, api, place, tmp_path, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (place / "out").unlink(missing_ok=True)
    (place / "out").symlink_to(outside)
    path = {
        "plain": str(outside / "secret"),
        "dots": f"{place}/../../../../../../../..{outside}/secret",
        "link": f"{place}/out/secret",
        "relative": "home",
        "sibling": f"{gateway.root}/homeless",
    }[kind]
    (place / "inside").write_text("x")
    answers = list(everywhere(api, path, str(place / "inside")))
    assert {(answer.status_code, answer.json()["errorType"]) for answer in answers} == {(400, "error")}
    assert [file.name for file in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "secret"


def test_an_upload_cannot_name_its_way_out(gateway, api, place):
    files = {"file": ("../../../../outside", b"x")}
    answer = api.http.post(api.place("filesystem/ops/upload"), params={"path": str(place)}, files=files)
    assert answer.status_code == 400 or (place / "outside").exists()
    assert not (gateway.root / "outside").exists()


def test_an_archive_cannot_write_outside(gateway, api, place, tmp_path):
    (tmp_path / "x").write_text("x")
    with tarfile.open(place / "evil.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "x", arcname="../../../../evil")
    answer = api.post("filesystem/ops/extract", path=str(place / "evil.tar.gz"), targetPath=str(place))
    assert answer.status_code == 500
    assert not list(gateway.root.glob("evil"))


def test_the_file_systems_themselves_stay(gateway, api):
    for path in (gateway.root / "home", gateway.scratch):
        assert api.delete("filesystem/ops/rm", path=str(path)).status_code == 403
        assert path.is_dir()


@pytest.mark.parametrize("name", ['it\'s $(touch x) "q"', "a;b|c", "new\nline", "é", "%41", "back\\slash"])
def test_odd_names_are_names_only(api, place, name):
    (place / name).write_text("content")
    path = str(place / name)
    assert api.get("filesystem/ops/view", path=path).json()["output"] == "content"
    assert api.get("filesystem/ops/download", path=path).content == b"content"
    assert api.delete("filesystem/ops/rm", path=path).status_code == 204
    assert list(place.iterdir()) == []


def test_names_come_escaped_as_ls_prints_them(api, place):
    for name in ("é", "a\nb", "it's", "back\\slash"):
        (place / name).touch()
    names = [line["name"] for line in api.get("filesystem/ops/ls", path=str(place)).json()["output"]]
    assert names == ["a\\nb", "back\\slash", "it's", "\\303\\251"]


def test_ls_hides_links_and_dereferences(gateway, api, place):
    (place / ".hidden").touch()
    (place / "deep").mkdir(exist_ok=True)
    (place / "deep/file").write_text("12345")
    (place / "link").symlink_to(place / "deep/file")

    def names(**params):
        return [
            line["name"] for line in api.get("filesystem/ops/ls", path=str(place), **params).json()["output"]
        ]

    assert names() == ["deep", "link"]
    assert names(showHidden=True) == [".hidden", "deep", "link"]
    assert names(recursive=True) == ["deep", "link", "deep/file"]
    lines = api.get("filesystem/ops/ls", path=str(place), dereference=True, numericUid=True).json()["output"]
    assert (lines[1]["type"], lines[1]["size"], lines[1]["user"]) == ("-", "5", str(os.getuid()))
    stats = [
        api.get("filesystem/ops/stat", path=str(place / "link"), dereference=flag).json()["output"]["size"]
        for flag in (True, False)
    ]
    assert stats[0] == 5
    assert stats[1] > 5


def test_view_reads_from_an_offset(api, place):
    (place / "log").write_text("0123456789")

    def view(**params):
        answer = api.get("filesystem/ops/view", path=str(place / "log"), **params)
        return answer.json().get("output", answer.status_code)

    assert view(offset=3, size=4) == "3456"
    assert view(offset=8) == "89"
    assert view(offset=100) == ""
    assert [view(offset=-1), view(size=0), view(size=6 * 2**20)] == [400, 400, 400]


def test_view_counts_characters_of_what_it_has_decoded(api, place):
    (place / "log").write_text("éèàüö")
    answer = api.get("filesystem/ops/view", path=str(place / "log"), offset=5, size=4)
    assert answer.json()["output"] == "üö", "the byte at 5 is in the middle of à"


@pytest.mark.parametrize(("size", "status"), [(3_932_157, 200), (3_932_158, 413), (0, 200)])
def test_the_odd_limit_of_downloads(api, place, size, status):
    (place / "file").write_bytes(b"x" * size)
    answer = api.get("filesystem/ops/download", path=str(place / "file"))
    assert (answer.status_code, len(answer.content) == size) == (status, status == 200)


def test_a_smaller_limit_counts_for_both_ways(make_gateway, make_api):
    gateway = make_gateway(max_ops_file_size=400)
    api = make_api(gateway)

    def up(size):
        files = {"file": ("f", b"x" * size)}
        return api.http.post(
            api.place("filesystem/ops/upload"), params={"path": str(gateway.home)}, files=files
        )

    assert [up(401).status_code, up(400).status_code] == [413, 204]
    assert api.get("filesystem/ops/download", path=str(gateway.home / "f")).status_code == 413


def test_an_empty_upload_times_out_and_is_there(api, place):
    answer = api.http.post(
        api.place("filesystem/ops/upload"), params={"path": str(place)}, files={"file": ("e", b"")}
    )
    assert answer.status_code == 408
    assert (place / "e").exists()


def test_both_spellings_of_a_path_are_understood(api, place):
    for key in ("path", "sourcePath", "source_path"):
        assert api.post("filesystem/ops/mkdir", **{key: str(place / key)}).status_code == 201
    answer = api.post("filesystem/ops/mkdir", parent=True)
    assert (answer.status_code, answer.json()["message"][:16]) == (400, "Unable to decode")


def test_giving_files_away_is_not_permitted(api, place):
    (place / "f").touch()
    assert api.put("filesystem/ops/chown", path=str(place / "f"), owner="daemon").status_code == 403
    assert api.put("filesystem/ops/chown", path=str(place / "f"), group="nosuchgroup").status_code == 500


def test_compress_takes_patterns_and_compressions(api, place):
    (place / "t").mkdir(exist_ok=True)
    for name in ("a.txt", "b.bin"):
        (place / "t" / name).write_text("x")
    for compression in ("none", "gzip", "bzip2", "xz"):
        target = str(place / f"{compression}.tar")
        body = {"path": str(place / "t"), "targetPath": target, "matchPattern": r".*\.txt"}
        assert api.post("filesystem/ops/compress", **body, compression=compression).status_code == 204
        with tarfile.open(target) as tar:
            assert tar.getnames() == ["t", "t/a.txt"]
    answer = api.post("filesystem/ops/compress", path=str(place / "t"), targetPath=target, compression="zip")
    assert (answer.status_code, answer.json()["errorType"]) == (400, "validation")
