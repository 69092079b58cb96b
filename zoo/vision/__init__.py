"""Image architectures, one file each; importing this package registers them all."""

from zoo.vision import biformer as biformer
from zoo.vision import s4d as s4d
from zoo.vision import vit as vit
