import os
import stat

import pytest
import torch

from d2kd.checkpoint import DamagedError, check_whole, save_whole, whole_file


def test_a_file_has_the_usual_permissions_and_replaces_a_link_not_its_target(tmp_path):
    usual = tmp_path / "usual"
    usual.write_text("")
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("kept")
    link.symlink_to(target)
    with whole_file(link) as partial:
        partial.write_text("new")
    assert target.read_text() == "kept" and not link.is_symlink() and link.read_text() == "new"
    assert stat.S_IMODE(os.stat(link).st_mode) == stat.S_IMODE(os.stat(usual).st_mode)


def test_two_writers_have_files_of_their_own(tmp_path):
    with whole_file(tmp_path / "file") as first, whole_file(tmp_path / "file") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "file").read_text() == "first"  # left last
    assert os.listdir(tmp_path) == ["file"]


def test_every_flipped_byte_of_a_tensor_is_seen(tmp_path):
    path = tmp_path / "x.pth"
    save_whole({"model": {"a": torch.arange(64.0)}}, path)
    check_whole(path)
    content = path.read_bytes()
    start = content.index(torch.arange(64.0).numpy().tobytes())
    for at in range(start, start + 256, 17):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        torch.load(path)  # which does not see it
        with pytest.raises(DamagedError, match="its entry .* is not what was written"):
            check_whole(path)


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_cut_file_is_damaged(tmp_path, size):
    path = tmp_path / "x.pth"
    save_whole({"model": {"a": torch.arange(64.0)}}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedError):
        check_whole(path)
