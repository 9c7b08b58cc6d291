"""Paths that reach the gateway: refused, or safe in any of its ways to quote them."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_hpc_provider.client.errors import InvalidInputError
from airflow_hpc_provider.client.paths import file_name, is_inside, remote_path

ANY_CASE = st.text(max_size=40)
# Mostly harmless, so that many examples pass and meet a real shell.
LIKELY = st.text(
    st.sampled_from("abcé日 .-_/+=:,@%^~#*?!()[]{}-$'\"\\;&|<>\n\t`\x7f\x85\u2028\xa0"), max_size=12
)
QUOTABLE = st.text(st.sampled_from("abcé日😀 .-_/+=:,@%^~#*?!()[]{}"), min_size=1, max_size=20)
HARMLESS = st.text(st.sampled_from("abcXYZ012é日😀/.-_+=:,@%^"), min_size=1, max_size=30)


def passes(text, *, unquoted=False):
    try:
        remote_path(text, "path", base="/base", unquoted=unquoted)
    except InvalidInputError:
        return False
    return True


@pytest.mark.parametrize(
    ("given_path", "normal"),
    [
        ("/scratch/me", "/scratch/me"),
        ("//scratch///me//", "/scratch/me"),
        ("/./scratch/././me/.", "/scratch/me"),
        ("/", "/"),
        ("///", "/"),
        ("/a b/é/..hidden/x~", "/a b/é/..hidden/x~"),
        ("/a/job-%j_%4a.out", "/a/job-%j_%4a.out"),
    ],
)
def test_an_absolute_path_is_normalised(given_path, normal):
    assert remote_path(given_path, "path") == normal


def test_a_relative_path_is_joined_to_its_base():
    assert remote_path("./run//out", "path", base="/scratch/me/") == "/scratch/me/run/out"
    assert remote_path(".", "path", base="/scratch/me/") == "/scratch/me"


def test_an_absolute_path_ignores_the_base():
    assert remote_path("/data", "path", base="nonsense") == "/data"


def test_a_bad_base_is_named():
    with pytest.raises(InvalidInputError, match=r"base directory of path: 'me' is relative"):
        remote_path("run", "path", base="me")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "is NoneType. Give the path as text"),
        (b"/a", "is bytes"),
        ("", "is empty"),
        ("run/out", "'run/out' is relative. Give an absolute path"),
        ("~/run", "'~' is not expanded"),
        ("/a/../b", "climbs with '..'"),
        ("/..", "climbs with '..'"),
        ("/a/it's", 'a single quote ("\'")'),
        ('/a/"b"', "a double quote"),
        ("$HOME/a", "relative"),
        (
            "/a/$HOME",
            "a dollar sign ('$'). The gateway cannot pass that to the cluster's shell safely and no variable",
        ),
        ("/a/`id`", "a backtick"),
        ("/a\\b", "a backslash"),
        ("/a;id", "a semicolon"),
        ("/a&b", "an ampersand"),
        ("/a|b", "a vertical bar"),
        ("/a<b", "a less-than sign"),
        ("/a>b", "a greater-than sign"),
        ("/a\nb", "a line break"),
        ("/a\tb", "a tab"),
        ("/a\0b", "the control character U+0000"),
        ("/a\x7f", "the control character U+007F"),
        ("/a\x85", "the control character U+0085"),
        ("/a\x1b[31m", "the control character U+001B"),
        ("/a\ud800", "the lone surrogate U+D800"),
        ("/a\u2028b", "the line separator U+2028"),
        ("/a\u2029b", "the paragraph separator U+2029"),
        ("/a/-rf", "the name '-rf' starts with '-'"),
        ("/a/" + "x" * 256, "has 256 bytes; a name ends at 255"),
        ("/a/" + "é" * 128, "has 256 bytes"),
        ("/x" * 2048, "has 4096 bytes; a path ends at 4095"),
    ],
)
def test_a_path_that_cannot_be_sent_is_refused_with_its_field_and_reason(value, problem):
    with pytest.raises(InvalidInputError) as refused:
        remote_path(value, "target_path")
    assert str(refused.value).startswith("target_path: ")
    assert problem in str(refused.value)
    assert refused.value.field == "target_path"


@pytest.mark.parametrize("character", "'\"$`\\;&|<>\n\t")
def test_the_refusal_of_a_character_says_what_to_do(character):
    with pytest.raises(InvalidInputError, match="rename it, or put it into an archive"):
        remote_path(f"/a{character}b", "path")


@pytest.mark.parametrize("character", " *?[](){}!#~\xa0\u3000")
def test_what_a_shell_expands_is_refused_only_where_nothing_quotes_it(character):
    assert remote_path(f"/a{character}b", "path") == f"/a{character}b"
    with pytest.raises(InvalidInputError, match=r"path: .*rename it, or put it into an archive"):
        remote_path(f"/a{character}b", "path", unquoted=True)


def test_the_base_of_an_unquoted_path_is_held_to_the_same_rule():
    with pytest.raises(InvalidInputError, match=r"base directory of path: .* a blank"):
        remote_path("x", "path", base="/my data", unquoted=True)


def test_the_longest_name_and_path_pass():
    assert remote_path("/" + "x" * 255, "path") == "/" + "x" * 255
    longest = "/x" * 2047 + "y"
    assert remote_path(longest, "path") == longest


def test_a_long_path_is_cut_in_the_error():
    with pytest.raises(InvalidInputError) as refused:
        remote_path("/" + "x/" * 3000, "path")
    assert len(str(refused.value)) < 300


def test_a_file_name_is_one_component():
    assert file_name("results v2.tar.gz", "name") == "results v2.tar.gz"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "is NoneType"),
        ("", "is empty"),
        ("a/b", "holds a '/'"),
        (".", "'.' is the directory itself"),
        ("..", "climbs"),
        ("-x", "starts with '-'"),
        ("it's", "a single quote"),
        ("x" * 256, "256 bytes"),
    ],
)
def test_what_is_no_safe_file_name_is_refused(value, problem):
    with pytest.raises(InvalidInputError, match=r"^name: ") as refused:
        file_name(value, "name")
    assert problem in str(refused.value)


def test_an_unquoted_file_name_has_no_blank():
    with pytest.raises(InvalidInputError, match="a blank"):
        file_name("a b", "name", unquoted=True)


@pytest.mark.parametrize(
    ("path", "directory", "inside"),
    [
        ("/a/b", "/a", True),
        ("/a", "/a", True),
        ("/a/", "/a//", True),
        ("/ab", "/a", False),
        ("/a", "/a/b", False),
        ("/a/b", "/", True),
        ("/a/../b", "/a", False),
        ("/a/b", "/a/..", False),
        ("a/b", "/a", False),
        ("/a/b", "a", False),
    ],
)
def test_a_path_is_inside_a_directory_by_whole_names(path, directory, inside):
    assert is_inside(path, directory) is inside


@given(ANY_CASE | LIKELY)
def test_any_text_is_refused_or_becomes_a_normal_path(text):
    if not passes(text):
        return
    path = remote_path(text, "path", base="/base")
    assert path.startswith("/")
    assert "//" not in path
    assert ".." not in path.split("/")
    assert remote_path(path, "path") == path
    assert text.startswith("/") or is_inside(path, "/base")


# Of all that passes quoted, and of what passes unquoted; many in one shell, for speed.
PASSING = st.lists((QUOTABLE | LIKELY | ANY_CASE).filter(passes), min_size=1, max_size=20)
PASSING_UNQUOTED = st.lists(
    (HARMLESS | QUOTABLE).filter(lambda text: passes(text, unquoted=True)), min_size=1, max_size=20
)


def printed(words):
    """What a real shell makes of the words of a command; fails if it complains."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode().split("\0")[:-1]


@settings(max_examples=50, deadline=None)
@given(PASSING)
def test_whatever_passes_survives_a_real_shell_between_either_quotes(texts):
    paths = [remote_path(text, "path", base="/base") for text in texts]
    # As FirecREST writes them: no escaping, only quotes around.
    assert printed(" ".join(f"'{path}'" for path in paths)) == paths
    assert printed(" ".join(f'"{path}"' for path in paths)) == paths


@settings(max_examples=50, deadline=None)
@given(PASSING_UNQUOTED)
def test_whatever_passes_unquoted_survives_a_real_shell_without_quotes(texts):
    paths = [remote_path(text, "path", base="/base", unquoted=True) for text in texts]
    assert printed(" ".join(paths)) == paths


def test_an_injection_through_a_quote_is_what_the_rule_stops():
    evil = "/tmp/x'; printf pwned; '"
    done = subprocess.run(["bash", "-c", f"ls '{evil}'"], capture_output=True, check=False)
    assert b"pwned" in done.stdout
    with pytest.raises(InvalidInputError, match="a single quote"):
        remote_path(evil, "path")
