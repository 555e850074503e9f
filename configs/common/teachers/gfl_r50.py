"""GFL R50-FPN, 1x, converted from OpenMMLab's file: docs/converting.md has the command."""

from ..models.gfl import model

checkpoint = "output/converted/gfl_r50.pth"
