"""
Backbones of timm that small detectors run on, at strides 8, 16 and 32: for ``model.backbone.bottom_up`` of the
``*_timm.py`` beside this file. ``pretrained=True`` downloads timm's ImageNet weights once. Without a network give a
file that holds them: ``model.backbone.bottom_up.weights=FILE`` (in a distilled config ``model.student.backbone...``).
"""

from detectron2.config import LazyCall as L

from d2kd.modeling.backbones import TimmBackbone, efficientnet_lite_weights

mobilenetv3_small = L(TimmBackbone)(name="mobilenetv3_small_100", out_indices=[2, 3, 4], pretrained=True)  # 0.9 M
mobilenetv3_large = L(TimmBackbone)(name="mobilenetv3_large_100", out_indices=[2, 3, 4], pretrained=True)  # 3.0 M
regnety_400mf = L(TimmBackbone)(name="regnety_004", out_indices=[2, 3, 4], pretrained=True)  # 3.9 M
convnext_nano = L(TimmBackbone)(name="convnext_nano", out_indices=[1, 2, 3], pretrained=True)  # 15.0 M

# 3.0 M, no squeeze-and-excitation and no swish, for int8. Its images are of another scale than the others':
# model.pixel_mean and model.pixel_std are [127.5, 127.5, 127.5]. The weights are of a package: d2kd[real].
efficientnet_lite0 = L(TimmBackbone)(
    name="tf_efficientnet_lite0", out_indices=[2, 3, 4], weights=L(efficientnet_lite_weights)(variant="lite0")
)
