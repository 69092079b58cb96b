"""Language architectures, one file each; importing this package registers them all."""

from zoo.language import albert as albert
from zoo.language import bert as bert
from zoo.language import bigbird as bigbird
from zoo.language import delta_net as delta_net
from zoo.language import fnet as fnet
from zoo.language import gemma as gemma
from zoo.language import gpt2 as gpt2
from zoo.language import gptj as gptj
from zoo.language import griffin as griffin
from zoo.language import linear_attention as linear_attention
from zoo.language import llama as llama
from zoo.language import longformer as longformer
from zoo.language import longnet as longnet
from zoo.language import lsg as lsg
from zoo.language import mamba as mamba
from zoo.language import mamba2 as mamba2
from zoo.language import miras as miras
from zoo.language import nystromformer as nystromformer
from zoo.language import pythia as pythia
from zoo.language import roberta as roberta
from zoo.language import routing_transformer as routing_transformer
from zoo.language import rwkv6 as rwkv6
from zoo.language import rwkv7 as rwkv7
from zoo.language import s4d as s4d
from zoo.language import titans as titans
from zoo.language import transformer as transformer
