"""The PyTorch models beside which :mod:`benchmarks.vision` measures ours: of each family its smallest published size.

A peer is timm's, or the authors' code as the script of its family under tests/references makes it (``published``), from
a checkout in a folder of clones that are named owner+name. Where the authors' code can't run on a CPU, the table says
why. Nothing here imports PyTorch until a peer is made.
"""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import subprocess
from typing import Any


@dataclasses.dataclass(frozen=True)
class Peer:
    """Whose model is measured beside ours.

    Attributes:
      timm: its name in timm.
      repository: owner/name of the authors' repository on GitHub.
      script: module of tests.references whose ``published`` makes the model.
      reason: why there is nothing to measure.
    """

    timm: str = ""
    repository: str = ""
    script: str = ""
    reason: str = ""

    def clone(self, clones: pathlib.Path) -> pathlib.Path:
        """The checkout of the repository."""
        return clones / self.repository.replace("/", "+")

    def missing(self, clones: pathlib.Path | None) -> str:
        """Why the model can't be made here; empty if it can."""
        if self.reason or self.timm:
            return self.reason
        if clones is None or not self.clone(clones).is_dir():
            folder = self.clone(pathlib.Path())
            return f"no checkout of github.com/{self.repository}: --clones=FOLDER, with it as {folder}"
        return ""

    def make(self, name: str, clones: pathlib.Path | None) -> Any:
        """The model that ours of this name is, freshly initialized."""
        live = importlib.import_module("tests.references.live")  # before what imports torchvision
        if self.timm:
            return live.timm.create_model(self.timm)
        assert clones is not None
        return importlib.import_module(f"tests.references.{self.script}").published(self.clone(clones), name)

    def named(self, clones: pathlib.Path | None) -> str:
        """For the report: what it is, at which commit."""
        if self.timm:
            return f"timm {self.timm}"
        commit = ""
        if clones is not None and self.clone(clones).is_dir():
            command = ["git", "-C", str(self.clone(clones)), "rev-parse", "--short=8", "HEAD"]
            commit = " " + subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        return f"github.com/{self.repository}{commit}"


def _timm(*names: str) -> dict[str, Peer]:
    """Models that timm has under our names."""
    return {name: Peer(timm=name) for name in names}


def _kernel(repository: str, reason: str) -> Peer:
    return Peer(repository=repository, reason=reason)


_NATTEN = "its attention is a compiled operator of an old version of natten"
_TRITON = "its recurrence is a kernel in Triton, which needs a GPU"
PEERS = {
    **_timm("vit_small_patch16_224", "deit_tiny_patch16_224"),
    "maxvit_tiny": Peer(timm="maxvit_tiny_tf_224"),
    "biformer_tiny": Peer(repository="rayleizhu/BiFormer", script="biformer"),
    **_timm(
        "resnet18",
        "halonet26t",
        "convnext_atto",
        "convnext_atto_ols",
        "mambaout_femto",
        "focalnet_tiny_srf",
        "swin_tiny_patch4_window7_224",
        "swinv2_tiny_window8_256",
        "pvt_v2_b0",
        "cait_xxs24_224",
        "eva02_tiny_patch14_336",
        "mixer_s32_224",
        "gmlp_ti16_224",
        "resmlp_12_224",
    ),
    "eca_resnet18_k3577": Peer(repository="BangguWu/ECANet", script="eca"),
    "pvt_tiny": Peer(repository="whai362/PVT", script="pvt_v1"),
    "t2t_vit_7": Peer(repository="yitu-opensource/T2T-ViT", script="t2t_vit"),
    "hvt_tiny_1": Peer(repository="zhuang-group/HVT", script="hvt"),
    "cswin_tiny_224": Peer(repository="microsoft/CSWin-Transformer", script="cswin"),
    "agent_deit_tiny_patch16_224": Peer(repository="LeapLabTHU/Agent-Attention", script="cores"),
    "agent_cswin_tiny_224": Peer(repository="LeapLabTHU/Agent-Attention", script="cores"),
    "inline_deit_tiny_patch16_224": Peer(repository="LeapLabTHU/InLine", script="cores"),
    "inline_cswin_tiny_224": Peer(repository="LeapLabTHU/InLine", script="cores"),
    "rmt_tiny": Peer(repository="qhfan/RMT", script="rmt"),
    "ravlt_tiny": Peer(repository="qhfan/RALA", script="ravlt"),
    "l2vit_tiny": Peer(repository="ChuanyangZheng/L2ViT", script="l2vit"),
    "transnext_micro": Peer(repository="DaiShiResearch/TransNeXt", script="transnext"),
    "moh_transnext_small_75": Peer(repository="SkyworkAI/MoH", script="transnext"),
    "fan_tiny_12_p16_224": Peer(repository="NVlabs/FAN", script="fan"),
    "tap_fan_tiny_12_p16_224": Peer(repository="guoyongcs/TAPADL", script="fan"),
    "dependencyvit_tiny_patch16_224": Peer(repository="huggingface/pytorch-image-models", script="dependencyvit"),
    "sparsifiner_tiny_patch16_224": Peer(repository="lim142857/Sparsifiner", script="sparsifiner"),
    "vit_resnas_tiny": Peer(repository="yilunliao/vit-search", script="vit_resnas"),
    "lookhere_180_base_patch16_224": Peer(repository="GreenCUBIC/lookhere", script="lookhere"),
    "vir_small_patch16_224": Peer(repository="anom63931/ViR", script="vir"),
    "rsmamba_small": Peer(repository="KyanChen/RSMamba", script="rsmamba"),
    "ninformer_cifar": Peer(repository="Abdullah-88/NiNformer", script="ninformer"),
    "nat_mini": _kernel("SHI-Labs/Neighborhood-Attention-Transformer", _NATTEN),
    "overlock_xt": _kernel("LMMMEng/OverLoCK", _NATTEN),
    "vig_tiny": _kernel("hustvl/ViG", _TRITON),
    "vig_h_tiny": _kernel("hustvl/ViG", _TRITON),
    "longvit_small_patch32_1024": _kernel(
        "microsoft/torchscale", "its dilated attention is a kernel of flash-attn, which needs a GPU"
    ),
}
"""By our names."""
