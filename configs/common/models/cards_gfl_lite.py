"""The cards' GFL on EfficientNet-Lite0 cut after stride 16, with ImageNet weights; stride 32 is made from it."""
