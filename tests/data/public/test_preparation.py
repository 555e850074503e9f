"""Making a public data set's folder, on repositories of three images."""

import json
import shutil
import zipfile

import pytest
from PIL import Image

from d2kd.data.public import conversion, preparation, prepare_public_data
from tests.data.public.repositories import write_aquarium, write_cards


@pytest.fixture
def root(tmp_path):
    return tmp_path / "datasets"


@pytest.fixture
def repository(tmp_path):
    return tmp_path / "repository"


def pack(repository, path, top):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(repository.rglob("*")):
            archive.write(file, f"{top}/{file.relative_to(repository)}")


@pytest.fixture
def serve(server, tmp_path, monkeypatch):
    """Serves a repository's archive where GitHub does; returns the file."""
    monkeypatch.setattr(preparation, "ARCHIVE", f"{server}/{{repository}}/zip/{{commit}}")

    def serve(public_set, repository):
        path = tmp_path / "served" / public_set.repository / "zip" / public_set.commit
        pack(repository, path, f"{public_set.repository.split('/')[1]}-{public_set.commit}")
        return path

    return serve


def state(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def nothing_left(root):
    return not root.exists() or not any(root.iterdir())


class TestFromTheRepository:
    @pytest.mark.parametrize("write", [write_cards, write_aquarium])
    def test_download(self, write, repository, serve, root):
        public_set, texts = write(repository)
        serve(public_set, repository)
        folder = prepare_public_data(public_set, root=root)
        assert folder == root / public_set.name
        assert {split: (folder / split / "annotations.json").read_text() for split in texts} == texts
        for split, text in texts.items():
            (image,) = json.loads(text)["images"]
            assert Image.open(folder / split / "images" / image["file_name"]).size == (320, 240)
        assert len(state(folder)) == 2 * 3 + 2
        assert [path.name for path in root.iterdir()] == [public_set.name]  # no workspace

    def test_licence_and_origin_stand_beside_the_data(self, repository, root):
        cards, _ = write_cards(repository)
        folder = prepare_public_data(cards, repository, root)
        assert (folder / "LICENSE").read_text() == "the repository's licence"
        readme = (folder / "README.md").read_text()
        assert all(text in readme for text in (cards.origin, cards.commit, cards.licence, cards.attribution))
        assert max(map(len, readme.splitlines())) <= 170  # a URL

    def test_the_licence_that_a_repository_lacks_is_written(self, repository, root):
        aquarium, _ = write_aquarium(repository)
        assert "CC BY 4.0" in (prepare_public_data(aquarium, repository, root) / "LICENSE").read_text()

    def test_unpacked_and_archive_give_the_same(self, repository, tmp_path, root):
        cards, _ = write_cards(repository)
        pack(repository, tmp_path / "cards.zip", "any-name")
        (tmp_path / "unzipped").mkdir()
        shutil.copytree(repository, tmp_path / "unzipped" / "inside")
        first, *others = (
            state(prepare_public_data(cards, source, root / str(number)))
            for number, source in enumerate((repository, tmp_path / "cards.zip", tmp_path / "unzipped"))
        )
        assert all(other == first for other in others)

    def test_no_code_of_the_repository_is_kept(self, repository, root):
        cards, _ = write_cards(repository)
        assert not list(prepare_public_data(cards, repository, root).rglob("*.py"))


class TestFromConvertedFiles:
    def test_what_belongs_to_the_data_set_is_copied(self, repository, root, tmp_path):
        cards, _ = write_cards(repository)
        first = prepare_public_data(cards, repository, root)
        (first / "notes.txt").write_text("not of the data set")
        second = prepare_public_data(cards, first, tmp_path / "other")
        assert state(second) == {name: content for name, content in state(first).items() if name != "notes.txt"}

    @pytest.mark.parametrize(
        ("file", "content", "says"),
        [
            ("val/annotations.json", b"{}", "its val/annotations.json has another checksum"),
            ("val/annotations.json", None, "it has no val/annotations.json"),
            ("train/images/IMG_2383.jpg", b"cut", "its train/images/IMG_2383.jpg is missing or no whole image"),
            ("test/images/IMG_2384.jpg", None, "its test/images/IMG_2384.jpg is missing or no whole image"),
            ("LICENSE", None, "it has no LICENSE, which has to accompany the data"),
        ],
    )
    def test_a_fault_is_named_and_nothing_is_left(self, repository, root, tmp_path, file, content, says):
        cards, _ = write_cards(repository)
        source = prepare_public_data(cards, repository, tmp_path / "source")
        (source / file).unlink()
        if content is not None:
            (source / file).write_bytes(content)
        with pytest.raises(ValueError, match=rf"cards \(--from\) is not the data set cards: {says}\.$"):
            prepare_public_data(cards, source, root)
        assert nothing_left(root)

    def test_half_an_image(self, repository, root, tmp_path):
        cards, _ = write_cards(repository)
        image = prepare_public_data(cards, repository, tmp_path / "source") / "val/images/IMG_2387.jpg"
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
        with pytest.raises(ValueError, match="its val/images/IMG_2387.jpg is missing or no whole image"):
            prepare_public_data(cards, image.parents[2], root)
        assert nothing_left(root)

    def test_an_image_of_another_size(self, repository, root, tmp_path):
        cards, _ = write_cards(repository)
        source = prepare_public_data(cards, repository, tmp_path / "source")
        Image.new("RGB", (240, 320)).save(source / "val/images/IMG_2387.jpg")
        with pytest.raises(ValueError, match="its val/images/IMG_2387.jpg has another size than"):
            prepare_public_data(cards, source, root)


class TestRefusals:
    def test_half_a_download(self, repository, serve, root):
        cards, _ = write_cards(repository)
        archive = serve(cards, repository)
        archive.write_bytes(archive.read_bytes()[:-500])
        with pytest.raises(ValueError, match=r"archive\.zip is no whole zip archive .*: download it again\.$"):
            prepare_public_data(cards, root=root)
        assert nothing_left(root)

    def test_a_damaged_archive(self, repository, tmp_path, root):
        cards, _ = write_cards(repository)
        pack(repository, tmp_path / "cards.zip", "top")
        content = bytearray((tmp_path / "cards.zip").read_bytes())
        content[len(content) // 2] ^= 255
        (tmp_path / "cards.zip").write_bytes(content)
        with pytest.raises(ValueError, match="is no whole zip archive"):
            prepare_public_data(cards, tmp_path / "cards.zip", root)
        assert nothing_left(root)

    def test_an_encrypted_archive_and_one_of_something_else(self, repository, tmp_path, root):
        cards, _ = write_cards(repository)
        archive = tmp_path / "other.zip"
        with zipfile.ZipFile(archive, "w") as entries:
            entries.writestr("notes.txt", "x")
        with pytest.raises(ValueError, match=r"other\.zip \(--from\) has neither train/annotations\.json"):
            prepare_public_data(cards, archive, root)
        content = bytearray(archive.read_bytes())
        content[6] |= 1  # the flag of encryption, in the entry and in the directory
        content[content.find(b"PK\x01\x02") + 8] |= 1
        archive.write_bytes(content)
        with pytest.raises(ValueError, match="is no whole zip archive .*encrypted"):
            prepare_public_data(cards, archive, root)
        assert nothing_left(root)

    def test_no_such_download(self, repository, serve, root):
        cards, _ = write_cards(repository)
        serve(cards, repository).unlink()
        with pytest.raises(OSError, match=r"cannot be downloaded: HTTP Error 404.*give it with --from\.$"):
            prepare_public_data(cards, root=root)
        assert nothing_left(root)

    def test_another_image(self, repository, root):
        cards, _ = write_cards(repository)
        Image.new("RGB", (640, 480), "red").save(repository / "images/train/IMG_2387.jpg")
        with pytest.raises(ValueError, match=f"The images in .* are not those of {cards.origin}: some were altered"):
            prepare_public_data(cards, repository, root)
        assert nothing_left(root)

    def test_other_labels(self, repository, root):
        cards, _ = write_cards(repository)
        path = repository / "images/train/IMG_2387.xml"
        path.write_text(path.read_text().replace("queen", "king"))
        with pytest.raises(ValueError, match=r"The labels in .* its val/annotations\.json has another checksum\.$"):
            prepare_public_data(cards, repository, root)
        assert nothing_left(root)

    def test_a_missing_label_file(self, repository, root):
        cards, _ = write_cards(repository)
        (repository / "images/train/IMG_2387.xml").unlink()
        with pytest.raises(FileNotFoundError, match="IMG_2387.xml"):
            prepare_public_data(cards, repository, root)
        assert nothing_left(root)

    def test_a_folder_of_something_else(self, repository, tmp_path, root):
        cards, _ = write_cards(repository)
        (tmp_path / "else" / "photos").mkdir(parents=True)
        with pytest.raises(ValueError, match="else .--from. has neither train/annotations.json, .* nor images/test/"):
            prepare_public_data(cards, tmp_path / "else", root)
        assert nothing_left(root)

    def test_no_such_folder(self, repository, root):
        cards, _ = write_cards(repository)
        with pytest.raises(FileNotFoundError, match=r"--from is .*none, but there is no such file or folder\.$"):
            prepare_public_data(cards, repository / "none", root)


class TestWholeOrNotAtAll:
    def test_an_interruption_leaves_nothing(self, repository, root, monkeypatch):
        cards, _ = write_cards(repository)
        read = conversion.read_voc

        def interrupted(path, *args):
            if path.stem == "IMG_2387":
                raise KeyboardInterrupt
            return read(path, *args)

        monkeypatch.setattr(conversion, "read_voc", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_public_data(cards, repository, root)
        assert nothing_left(root)

    def test_one_that_is_there_is_kept(self, repository, root):
        cards, _ = write_cards(repository)
        folder = prepare_public_data(cards, repository, root)
        before = state(folder)
        shutil.rmtree(repository)
        assert prepare_public_data(cards, root=root) == folder and state(folder) == before

    def test_an_empty_folder_is_filled(self, repository, root):
        cards, _ = write_cards(repository)
        (root / "cards").mkdir(parents=True)
        assert (prepare_public_data(cards, repository, root) / "train").is_dir()

    def test_other_files_are_left_alone(self, repository, root):
        cards, _ = write_cards(repository)
        (root / "cards").mkdir(parents=True)
        (root / "cards" / "mine.txt").write_text("mine")
        with pytest.raises(ValueError, match="exists, but is not the data set cards: it has no train/annotations.json"):
            prepare_public_data(cards, repository, root)
        assert state(root) == {"cards/mine.txt": b"mine"}
