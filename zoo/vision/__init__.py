"""Image architectures, one file each; importing this package registers them all."""

from zoo.vision import agent as agent
from zoo.vision import biformer as biformer
from zoo.vision import cait as cait
from zoo.vision import convnext as convnext
from zoo.vision import cswin as cswin
from zoo.vision import eva as eva
from zoo.vision import focalnet as focalnet
from zoo.vision import halonet as halonet
from zoo.vision import hvt as hvt
from zoo.vision import inline as inline
from zoo.vision import longvit as longvit
from zoo.vision import lookhere as lookhere
from zoo.vision import mambaout as mambaout
from zoo.vision import maxvit as maxvit
from zoo.vision import nat as nat
from zoo.vision import pvt as pvt
from zoo.vision import pvt_v1 as pvt_v1
from zoo.vision import ravlt as ravlt
from zoo.vision import resnet as resnet
from zoo.vision import rmt as rmt
from zoo.vision import s4d_pixels as s4d_pixels
from zoo.vision import swin as swin
from zoo.vision import swinv2 as swinv2
from zoo.vision import t2t_vit as t2t_vit
from zoo.vision import vig as vig
from zoo.vision import vit as vit
