"""The embedded digits dataset, on sets of a few images."""

import itertools
import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO

from d2kd.data.digits import __main__ as command
from d2kd.data.digits import composition
from d2kd.data.digits import dataset as digits

TINY = {"train": 12, "val": 4, "test": 4}
NAMES = [f"digits_{split}" for split in TINY]
CONFIGS = Path(__file__).parents[3] / "configs" / "digits"


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """Sets of a few images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "SIZES", TINY)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A tiny set that no test alters."""
    return digits.prepare_digits(tmp_path_factory.mktemp("made") / "digits")


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """A copy of it to alter, alone in its parent folder."""
    return Path(shutil.copytree(made, tmp_path / "digits"))


@pytest.fixture
def unregistered():
    """What a test registers is removed after it."""
    yield
    for name in NAMES:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def material() -> composition.Material:
    return composition.load_material()


def annotations(root: Path, split: str) -> dict:
    return json.loads((root / "annotations" / f"digits_{split}.json").read_text())


def state(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


class TestContent:
    def test_two_makes_are_equal(self, made, tmp_path):
        again = digits.prepare_digits(tmp_path / "again")
        assert state(again) == state(made)

    def test_another_seed_makes_other_images(self, made, tmp_path, monkeypatch):
        monkeypatch.setattr(digits, "SEED", digits.SEED + 1)
        other = state(digits.prepare_digits(tmp_path / "other"))
        assert all(other[file] != content for file, content in state(made).items())

    def test_an_image_does_not_depend_on_how_many_there_are(self, made, tmp_path, monkeypatch):
        monkeypatch.setattr(digits, "SIZES", {"train": 3, "val": 1, "test": 1})
        fewer = digits.prepare_digits(tmp_path / "fewer")
        for file in ("train/000003.jpg", "val/000001.jpg", "test/000001.jpg"):
            assert (fewer / file).read_bytes() == (made / file).read_bytes()

    def test_manifest_names_what_it_was_made_from(self, made):
        manifest = json.loads((made / "manifest.json").read_text())
        assert manifest["version"] == digits.DATASET_VERSION
        assert manifest["seed"] == digits.SEED
        assert manifest["images"] == TINY
        assert set(manifest["libraries"]) == {"numpy", "pillow", "scikit-learn", "scikit-image"}
        assert set(manifest["sha256"]) == {f"annotations/{name}.json" for name in NAMES} | set(TINY)

    @pytest.mark.parametrize("split", TINY)
    def test_coco_file(self, made, split):
        coco = COCO(str(made / "annotations" / f"digits_{split}.json"))
        assert sorted(coco.getImgIds()) == list(range(1, TINY[split] + 1))
        assert sorted(coco.getAnnIds()) == list(range(1, len(coco.anns) + 1))
        categories = {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())}
        assert categories == {1: "0", 2: "1", 3: "2", 4: "3", 5: "4"}
        files = sorted(p.name for p in (made / split).iterdir())
        assert files == sorted(image["file_name"] for image in coco.imgs.values())
        for image in coco.imgs.values():
            with Image.open(made / split / image["file_name"]) as picture:
                assert (picture.format, picture.mode) == ("JPEG", "RGB")
                assert picture.size == (image["width"], image["height"]) == (96, 96)
            assert 1 <= len(coco.getAnnIds(imgIds=image["id"])) <= 4
        for annotation in coco.anns.values():
            x, y, width, height = annotation["bbox"]
            assert 0 <= x < x + width <= 96 and 0 <= y < y + height <= 96
            assert annotation["area"] == width * height
            assert annotation["iscrowd"] == 0

    def test_splits_share_neither_samples_nor_photos(self, made, material):
        samples, photos = {}, {}
        for split in TINY:
            content = annotations(made, split)
            samples[split] = {a["sample"] for a in content["annotations"]}
            samples[split] |= {i["distractor"] for i in content["images"]} - {None}
            photos[split] = {i["photo"] for i in content["images"]}
            assert samples[split] <= set(composition.split_samples(material.labels, digits.SEED)[split])
            assert photos[split] <= set(composition.PHOTOS[split])
        for found in (samples, photos):
            assert not found["train"] & found["val"]
            assert not found["train"] & found["test"]
            assert not found["val"] & found["test"]

    def test_only_the_five_classes_are_annotated(self, made, material):
        content = annotations(made, "train")
        for annotation in content["annotations"]:
            assert material.labels[annotation["sample"]] == annotation["category_id"] - 1
        distractors = [i["distractor"] for i in content["images"] if i["distractor"] is not None]
        assert distractors and all(material.labels[sample] >= 5 for sample in distractors)


class TestReuse:
    def test_a_good_set_is_kept_silently(self, copy, caplog):
        caplog.set_level(logging.INFO)
        inode = (copy / "manifest.json").stat().st_ino
        assert digits.prepare_digits(copy) == copy
        assert (copy / "manifest.json").stat().st_ino == inode
        assert not caplog.records

    def test_making_is_said_before_and_after(self, tmp_path, caplog):
        caplog.set_level(logging.INFO)
        digits.prepare_digits(tmp_path / "deep" / "digits")
        before, after = (record.getMessage() for record in caplog.records)
        assert before.startswith("Making the digits dataset in ") and after.startswith("Made it in ")

    @pytest.mark.parametrize("file", ["annotations/digits_val.json", "train/000007.jpg", "test/000004.jpg"])
    @pytest.mark.parametrize("how", ["altered", "missing"])
    def test_a_damaged_set_is_made_again(self, made, copy, caplog, file, how):
        if how == "altered":
            content = bytearray((copy / file).read_bytes())
            content[len(content) // 2] ^= 1
            (copy / file).write_bytes(content)
        else:
            (copy / file).unlink()
        digits.prepare_digits(copy)
        assert state(copy) == state(made)
        assert "altered or are missing" in caplog.text
        assert list(copy.parent.iterdir()) == [copy]

    def test_swapped_images_are_noticed(self, made, copy):
        first, second = copy / "train/000001.jpg", copy / "train/000002.jpg"
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
        digits.prepare_digits(copy)
        assert state(copy) == state(made)

    @pytest.mark.parametrize("key, value", [("version", 0), ("seed", 1), ("images", {"train": 1})])
    def test_another_version_is_made_again(self, made, copy, caplog, key, value):
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps(manifest | {key: value}))
        digits.prepare_digits(copy)
        assert state(copy) == state(made)
        assert f"its {key} is {value}" in caplog.text

    def test_a_manifest_without_checksums_is_not_trusted(self, made, copy):
        manifest = json.loads((copy / "manifest.json").read_text())
        del manifest["sha256"]
        (copy / "manifest.json").write_text(json.dumps(manifest))
        digits.prepare_digits(copy)
        assert state(copy) == state(made)

    def test_an_empty_folder_is_filled(self, made, tmp_path, caplog):
        (tmp_path / "digits").mkdir()
        digits.prepare_digits(tmp_path / "digits")
        assert state(tmp_path / "digits") == state(made)
        assert "again" not in caplog.text


class TestForeignFiles:
    def test_a_foreign_folder_is_refused(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("the only copy")
        with pytest.raises(ValueError, match="not made by d2kd.*Move it away"):
            digits.prepare_digits(tmp_path)
        assert state(tmp_path) == {"thesis.txt": b"the only copy"}

    @pytest.mark.parametrize("manifest", ['{"name": "a web page"}', "[]", "not json"])
    def test_a_foreign_manifest_is_refused(self, tmp_path, manifest):
        (tmp_path / "manifest.json").write_text(manifest)
        with pytest.raises(ValueError, match="not made by d2kd"):
            digits.prepare_digits(tmp_path)
        assert state(tmp_path) == {"manifest.json": manifest.encode()}

    def test_a_file_in_the_place_of_the_folder_is_refused(self, tmp_path):
        (tmp_path / "digits").write_text("a file")
        with pytest.raises(ValueError, match="not made by d2kd"):
            digits.prepare_digits(tmp_path / "digits")

    def test_a_foreign_file_is_never_deleted(self, copy):
        (copy / "train" / "notes.txt").write_text("mine")
        digits.prepare_digits(copy)  # a good set is not made again, so nothing is in danger
        (copy / "train/000001.jpg").unlink()
        with pytest.raises(ValueError, match=r"1 that are not its own.*train/notes\.txt"):
            digits.prepare_digits(copy)
        assert (copy / "train" / "notes.txt").read_text() == "mine"


class TestNeverHalfWritten:
    @pytest.fixture
    def interrupted(self, monkeypatch):
        calls = []

        def compose(*args):
            calls.append(args)
            if len(calls) == 14:  # in the second split
                raise KeyboardInterrupt
            return composition.compose(*args)

        monkeypatch.setattr(digits, "compose", compose)

    def test_an_interruption_leaves_nothing(self, tmp_path, interrupted):
        with pytest.raises(KeyboardInterrupt):
            digits.prepare_digits(tmp_path / "digits")
        assert list(tmp_path.iterdir()) == []

    def test_an_interruption_leaves_the_former_set(self, copy, interrupted):
        (copy / "train/000001.jpg").write_bytes(b"")
        before = state(copy)
        with pytest.raises(KeyboardInterrupt):
            digits.prepare_digits(copy)
        assert state(copy) == before
        assert list(copy.parent.iterdir()) == [copy]

    def test_the_copy_of_a_faster_process_is_kept(self, made, tmp_path, monkeypatch):
        root = tmp_path / "digits"

        def compose(*args):
            if not root.exists():
                shutil.copytree(made, root)  # meanwhile another process finished
            return composition.compose(*args)

        monkeypatch.setattr(digits, "compose", compose)
        digits.prepare_digits(root)
        times = [(folder / "manifest.json").stat().st_mtime_ns for folder in (root, made)]
        assert times[0] == times[1]  # the copy's
        assert list(tmp_path.iterdir()) == [root]

    def test_a_process_that_wins_at_the_last_moment(self, made, tmp_path, monkeypatch):
        root = tmp_path / "digits"
        rename = Path.rename

        def late(self, target):
            if self.name == "new":
                shutil.copytree(made, root)
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", late)
        digits.prepare_digits(root)
        assert state(root) == state(made)
        assert list(tmp_path.iterdir()) == [root]

    def test_a_move_that_fails_is_an_error(self, tmp_path, monkeypatch):
        def full(self, target):
            raise OSError("no space left")

        monkeypatch.setattr(Path, "rename", full)
        with pytest.raises(OSError, match="no space left"):
            digits.prepare_digits(tmp_path / "digits")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unregistered")
class TestDetectron2:
    def test_get_digits(self, made):
        dicts = digits.get_digits("digits_val", root=made)
        assert len(dicts) == TINY["val"]
        content = annotations(made, "val")
        expected = [(a["image_id"], a["category_id"] - 1, a["bbox"]) for a in content["annotations"]]
        found = [(d["image_id"], a["category_id"], a["bbox"]) for d in dicts for a in d["annotations"]]
        assert found == expected
        assert all(Path(d["file_name"]).is_file() for d in dicts)

    def test_get_digits_takes_several_names(self, made):
        dicts = digits.get_digits(["digits_train", "digits_test"], root=made)
        assert len(dicts) == TINY["train"] + TINY["test"]

    def test_get_digits_takes_a_range_of_images(self, made):
        every = digits.get_digits("digits_train", root=made)
        assert digits.get_digits("digits_train", root=made, images=[3, 8]) == every[3:8]

    @pytest.mark.parametrize("images", [(0, 13), (4, 4), (-2, 4)])
    def test_a_range_without_such_images_is_named(self, made, images):
        with pytest.raises(ValueError, match=rf"images=\[{images[0]}, {images[1]}\] of digits_train.*<= 12"):
            digits.get_digits("digits_train", root=made, images=images)

    def test_batches_of_the_config_with_unlabeled_images(self, made):
        node = LazyConfig.load(str(CONFIGS / "gfl_tenth_crosskd_unlabeled.py")).dataloader.train
        node.seed = 0  # an interpolation, of the whole config
        node.dataset.update(root=str(made), images=[0, 2])  # of 12 images
        node.unlabeled.update(root=str(made), images=[2, 10])
        batches = list(itertools.islice(instantiate(node), 2))
        labelled = [[x for x in batch if "instances" in x] for batch in batches]
        unlabeled = [[x for x in batch if x.get("unlabeled")] for batch in batches]
        assert [(len(a), len(b), len(c)) for a, b, c in zip(batches, labelled, unlabeled, strict=True)] == [
            (16, 8, 8)
        ] * 2
        assert all(len(x["instances"]) >= 1 and x["image_id"] in (1, 2) for batch in labelled for x in batch)
        assert {x["image_id"] for x in unlabeled[0]} == set(range(3, 11))
        keys = {"file_name", "height", "width", "image_id", "image", "unlabeled"}
        assert all(set(x) == keys for batch in unlabeled for x in batch)

    def test_register_twice(self, made):
        digits.register_digits(made)
        first = [DatasetCatalog[name] for name in NAMES]
        digits.register_digits(made)
        assert [DatasetCatalog[name] for name in NAMES] == first
        for name in NAMES:
            metadata = MetadataCatalog.get(name)
            assert metadata.thing_classes == ["0", "1", "2", "3", "4"]
            assert metadata.evaluator_type == "coco"
            assert metadata.json_file == str(made / "annotations" / f"{name}.json")

    def test_another_folder_replaces_the_former(self, made, copy):
        digits.register_digits(copy)
        assert len(DatasetCatalog.get("digits_test")) == TINY["test"]
        digits.register_digits(made)
        assert MetadataCatalog.get("digits_test").image_root == str(made / "test")
        assert {Path(d["file_name"]).parent for d in DatasetCatalog.get("digits_test")} == {made / "test"}

    def test_registering_makes_no_files(self, tmp_path):
        digits.register_digits(tmp_path / "digits")
        assert list(tmp_path.iterdir()) == []


class TestDefaults:
    def test_folder_of_detectron2(self, made, tmp_path, monkeypatch):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        assert digits.prepare_digits() == tmp_path / "digits"
        assert state(tmp_path / "digits") == state(made)

    def test_folder_without_the_variable(self, tmp_path, monkeypatch):
        monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
        monkeypatch.chdir(tmp_path)
        assert digits.prepare_digits() == tmp_path / "datasets" / "digits"

    def test_command(self, made, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["digits", "--root", str(tmp_path / "here")])
        command.main()
        assert capsys.readouterr().out == f"{tmp_path / 'here'}\n"
        assert state(tmp_path / "here") == state(made)


class TestMissingLibraries:
    @pytest.mark.parametrize("module", ["sklearn.datasets", "skimage"])
    def test_the_error_says_what_to_install(self, tmp_path, monkeypatch, module):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=r"pip install scikit-learn scikit-image.*\[demo\]"):
            digits.prepare_digits(tmp_path / "digits")
        assert list(tmp_path.iterdir()) == []

    def test_a_made_set_needs_neither(self, made, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        monkeypatch.setitem(sys.modules, "skimage", None)
        assert digits.prepare_digits(made) == made

    def test_a_photo_that_is_not_bundled(self, monkeypatch):
        monkeypatch.setitem(composition.PHOTOS, "val", ("nowhere.png",))
        with pytest.raises(ImportError, match=r"nowhere\.png.*scikit-image>="):
            composition.load_material()
