"""The public data sets as Detectron2 datasets, on sets of one image a split."""

import importlib
import json

import pytest
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2kd.config import load_config
from d2kd.data.public import SETS, SPLITS, dataset, get_public_data
from d2kd.engine.prediction import classes_of


def write_set(root, name):
    for split in SPLITS:
        (root / name / split).mkdir(parents=True)
        content = {
            "images": [
                {"id": 1, "file_name": f"{split}.jpg", "width": 32, "height": 24},
                {"id": 2, "file_name": "empty.jpg", "width": 32, "height": 24},
            ],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}],
            "categories": [{"id": i, "name": each} for i, each in enumerate(SETS[name].classes, start=1)],
        }
        (root / name / split / "annotations.json").write_text(json.dumps(content))


@pytest.fixture(autouse=True)
def forgotten():
    yield
    for name in [f"{each}_{split}" for each in SETS for split in SPLITS]:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


class TestGetPublicData:
    def test_reads_from_the_datasets_folder(self, tmp_path, monkeypatch):
        write_set(tmp_path, "cards")
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        item, empty = get_public_data("cards_val")
        assert item["file_name"] == str(tmp_path / "cards/val/images/val.jpg")
        assert [each["category_id"] for each in item["annotations"]] == [1]  # contiguous, from 0
        assert empty["annotations"] == []
        assert MetadataCatalog.get("cards_val").thing_classes == list(SETS["cards"].classes)

    def test_several_splits_without_their_empty_images(self, tmp_path):
        write_set(tmp_path, "bccd")
        assert len(get_public_data(["bccd_train", "bccd_test"], filter_empty=True, root=tmp_path)) == 2

    def test_another_root_replaces_the_first(self, tmp_path):
        for root in (tmp_path / "a", tmp_path / "b"):
            write_set(root, "cards")
            (item, _) = get_public_data("cards_train", root=root)
            assert item["file_name"].startswith(str(root))

    def test_importing_registers_nothing(self):
        importlib.reload(dataset)
        assert not {f"{name}_{split}" for name in SETS for split in SPLITS} & set(DatasetCatalog.list())

    def test_missing_files_name_the_command_that_makes_them(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="has no train/annotations.json.*`d2kd data get aquarium`"):
            get_public_data("aquarium_test", root=tmp_path)

    @pytest.mark.parametrize("name", ["card_train", "cards", "cards_minival", ""])
    def test_an_unknown_name_is_refused(self, name, tmp_path):
        with pytest.raises(ValueError, match=f"no public data set '{name}': expected one of cards, aquarium, bccd, "):
            get_public_data(name, root=tmp_path)


def test_predictions_name_the_classes_of_a_config_that_reads_public_data(tmp_path, monkeypatch):
    write_set(tmp_path, "cards")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = load_config("cards/gfl_baseline.py")
    detector = instantiate(cfg.model.student)
    assert classes_of(cfg, detector) == (list(SETS["cards"].classes), {index: index + 1 for index in range(6)})
