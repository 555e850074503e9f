"""Wrong overrides of ``dataloader``."""

from __future__ import annotations

from tests.bad_inputs.cases_override import override

__all__ = ["CASES"]

CASES = [
    override("dataloader.train=null", "d2kd train: dataloader.train is null, expected a node with its arguments."),
    override(
        "dataloader.train.mapper=null",
        "d2kd train: dataloader.train.mapper is None, expected what makes a sample of an entry of the "
        "dataset, such as L(DatasetMapper)(...).",
    ),
    override(
        "dataloader.train.mapper.augmentations=[flip]",
        "d2kd train: dataloader.train.mapper cannot be made: AssertionError: flip (in "
        "detectron2.data.transforms.augmentation._transform_to_aug). Correct its values.",
    ),
    override(
        "dataloader.train.mapper.image_format=RGB",
        "d2kd train: dataloader.train.mapper.image_format is 'RGB', but model.input_format is 'BGR': make them equal.",
    ),
    override(
        "dataloader.train.mapper.image_format=L",
        "d2kd train: dataloader.train.mapper.image_format is 'L', images whose channels are 1, but the "
        "model's pixel_mean has 3: make them agree.",
    ),
    override(
        "dataloader.train.dataset.names=null",
        "d2kd train: dataloader.train.dataset.names is None, expected the name of a dataset, or a list of names.",
    ),
    override(
        "dataloader.train.dataset.names=birds_trian",
        "d2kd train: dataloader.train.dataset.names names the dataset 'birds_trian', which is not "
        "registered: did you mean birds_train? Register your own in the config.",
    ),
    override(
        "dataloader.test.dataset.names=birds_vla",
        "d2kd train: dataloader.test.dataset.names names the dataset 'birds_vla', which is not "
        "registered: did you mean birds_val? Register your own in the config.",
    ),
    override(
        "dataloader.test.batch_size=0", "d2kd train: dataloader.test.batch_size is 0, expected a whole number >= 1."
    ),
    override(
        "dataloader.train.total_batch_size=0",
        "d2kd train: dataloader.train.total_batch_size is 0, expected a whole number >= 1.",
    ),
    override(
        "dataloader.train.num_workers=-1",
        "d2kd train: dataloader.train.num_workers is -1, expected a whole number >= 0.",
    ),
    override(
        "dataloader.train.on_error=ignore",
        "d2kd train: dataloader.train.on_error is 'ignore', expected 'raise' or 'skip'.",
    ),
    override(
        "dataloader.evaluator.dataset_name=birds_vla",
        "d2kd train: dataloader.evaluator.dataset_name is 'birds_vla', expected one registered dataset: "
        "did you mean birds_val?",
    ),
    override(
        "dataloader.evaluator.tasks=[box]",
        "d2kd train: dataloader.evaluator.tasks has 'box', expected some of bbox, segm, keypoints.",
    ),
]
