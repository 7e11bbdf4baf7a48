"""Files that appear complete or not at all."""

import pytest

from pagedvid.files.atomic import discard, remove_stale, replacing, temporary_path


def test_the_file_appears_at_the_end(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.json", "new")]


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), replacing(path) as temporary:
        temporary.write_text("ne")
        raise OSError("full")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.json", "old")]


@pytest.mark.parametrize("obstacle", ["folder", "file in place of the folder", "nothing"])
def test_discarding_never_raises(tmp_path, obstacle):
    path = tmp_path / "out" / "a.json"
    if obstacle == "folder":
        temporary_path(path).mkdir(parents=True)
    elif obstacle == "file in place of the folder":
        path.parent.touch()
    discard(path)


def test_the_first_error_is_the_one_that_is_raised(tmp_path):
    """And not an error of cleaning up after it."""
    (tmp_path / "out").touch()
    with pytest.raises(NotADirectoryError), replacing(tmp_path / "out" / "a.json") as temporary:
        temporary.write_text("x")


def test_only_our_own_temporary_files_are_stale(tmp_path):
    temporary_path(tmp_path / "a.mp4").write_text("half")
    (tmp_path / "theirs.mp4.tmp").write_text("keep")
    (tmp_path / ".hidden").write_text("keep")
    assert remove_stale(tmp_path) == 1
    assert {file.name for file in tmp_path.iterdir()} == {"theirs.mp4.tmp", ".hidden"}
