"""``d2kd data get``."""

import pytest

from d2kd.__main__ import main
from d2kd.data.public import SETS
from tests.data.public.repositories import write_cards


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """A tiny repository of cards, whose checksums are the right ones."""
    cards, _ = write_cards(tmp_path / "repository")
    monkeypatch.setitem(SETS, "cards", cards)
    return cards


class TestGet:
    def test_says_licence_origin_and_attribution(self, cards, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
        assert main(["data", "get", "cards", "--from", str(tmp_path / "repository")]) == 0
        out = capsys.readouterr().out
        assert all(text in out for text in (cards.about, cards.origin, cards.licence, cards.attribution))
        assert out.splitlines()[-1] == str(tmp_path / "datasets" / "cards")

    def test_a_root_of_ones_own(self, cards, tmp_path):
        root = tmp_path / "mine"
        assert main(["data", "get", "cards", "--from", str(tmp_path / "repository"), "--root", str(root)]) == 0
        assert (root / "cards" / "LICENSE").is_file()

    def test_an_error_is_one_sentence(self, cards, tmp_path, capsys):
        assert main(["data", "get", "cards", "--from", "none", "--root", str(tmp_path)]) == 2
        assert capsys.readouterr().err == "d2kd data: --from is none, but there is no such file or folder.\n"

    @pytest.mark.parametrize("arguments", [[], ["get"], ["get", "coco"], ["put", "cards"]])
    def test_wrong_arguments(self, arguments, capsys):
        with pytest.raises(SystemExit):
            main(["data", *arguments])
        assert "d2kd data" in capsys.readouterr().err

    def test_help_lists_the_data_sets(self, capsys):
        with pytest.raises(SystemExit):
            main(["data", "--help"])
        out = capsys.readouterr().out
        assert all(each.about in out and each.licence in out for each in SETS.values())
