"""RetinaNet R101-FPN 3x of Detectron2's model zoo: no teacher to train."""

from ..models.retinanet import model

model.backbone.bottom_up.stages.depth = 101
checkpoint = "detectron2://COCO-Detection/retinanet_R_101_FPN_3x/190397697/model_final_971ab9.pkl"
